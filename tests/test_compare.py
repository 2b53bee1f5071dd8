"""The comparison with other engines, but for the engines."""

from __future__ import annotations

from typing import Any

import pytest

from bench import compare
from bench.runner import Padded, padded


def test_ratios_are_of_the_same_round() -> None:
    assert compare.ratios([1.0, 2.0, 4.0], [2.0, 2.0, 2.0]) == {
        "median": 1.0,
        "least": 0.5,
        "most": 2.0,
    }


def test_a_weaker_processor_is_never_kept_as_this_one() -> None:
    assert compare.processor_class("AVX2") == "emulated AVX2"
    assert not compare.processor_class("").startswith("emulated")


def test_every_package_of_the_peers_is_pinned() -> None:
    packages = compare._PACKAGES.split()
    assert len(packages) > 10
    assert all(package.count("==") == 1 for package in packages)
    assert not [package for package in packages if package.startswith("torch")]


@pytest.mark.parametrize("count", [1, 9])
def test_padded_batches_give_the_rows_in_the_order_of_the_texts(count: int) -> None:
    ids = [[i + 1] * (1 + i * 7 % 5) for i in range(count)]

    def run(rows: Any, mask: Any) -> Any:
        assert (rows.astype(bool) == mask.astype(bool)).all()
        return rows[:, :1]

    embed = Padded(run)
    assert embed(ids).ravel().tolist() == [row[0] for row in ids]
    assert padded(ids)[1].sum() == sum(map(len, ids))
