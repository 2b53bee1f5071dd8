"""JSON in parts: the same bytes as in one go, none of them large."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from api.http import body as writing
from api.http.body import dumps, off_loop, parts, size, write

FLOATS = st.floats(width=32, allow_nan=False)
ARRAYS = npst.arrays(
    np.float32, npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5), elements=FLOATS
)
LEAVES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FLOATS | st.text(max_size=60)


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=6)
            | st.dictionaries(st.text(max_size=5), inner, max_size=6)
            | st.lists(inner, max_size=4).map(tuple)
        ),
        max_leaves=30,
    )


VALUES = nested(LEAVES | ARRAYS | FLOATS.map(np.float32))
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def num_numbers(part: bytes) -> int:
    return len(_NUMBER.findall(part))


@given(value=VALUES, max_values=st.integers(1, 40))
def test_parts_joined_are_the_whole(value: Any, max_values: int) -> None:
    assert b"".join(parts(value, max_values)) == dumps(value)


@given(rows=ARRAYS, max_values=st.integers(1, 30))
def test_an_array_is_written_by_its_rows(rows: Any, max_values: int) -> None:
    pieces = list(parts({"embeddings": rows}, max_values))
    assert b"".join(pieces) == dumps({"embeddings": rows})
    widest = rows[0].size if len(rows) else 0
    if rows.ndim > 1:
        assert max(map(num_numbers, pieces)) <= max(max_values, widest)


@given(
    widths=st.lists(st.integers(0, 4), max_size=8),
    height=st.integers(0, 4),
    max_values=st.integers(1, 20),
)
def test_arrays_in_lists_are_written_in_bounded_parts(
    widths: list[int], height: int, max_values: int
) -> None:
    matrices = [np.full((height, width), 0.5, np.float32) for width in widths]
    answer = [{"index": i, "colbert": matrix} for i, matrix in enumerate(matrices)]
    pieces = list(parts(answer, max_values))
    assert b"".join(pieces) == dumps(answer)
    row_of_an_item = max([*widths, 2])
    assert all(num_numbers(piece) <= max(max_values, row_of_an_item) for piece in pieces)


@given(
    value=st.recursive(
        st.floats(0, 1, width=32), lambda inner: st.lists(inner, max_size=5), max_leaves=60
    ),
    max_values=st.integers(1, 20),
)
def test_no_part_of_nested_lists_has_many_more_numbers(value: Any, max_values: int) -> None:
    assert all(num_numbers(piece) <= max_values for piece in parts(value, max_values))


@pytest.mark.parametrize(
    "value",
    [
        *([], {}, (), [[]], [{}], {"a": []}, {"a": {}}, [[], [], []], [[[]], {}], "", None, 0),
        *(np.zeros((0, 4), np.float32), np.zeros((4, 0), np.float32), np.zeros(0, np.float32)),
        *([np.zeros((0, 4), np.float32)] * 3, {"a": [np.zeros((3, 0), np.float32)]}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("max_values", [0, 1, 2, 100])
def test_what_is_empty_is_written_too(value: Any, max_values: int) -> None:
    assert b"".join(parts(value, max_values)) == dumps(value)


def test_a_large_answer_comes_in_many_parts_and_a_small_one_in_one() -> None:
    rows = np.random.default_rng(0).standard_normal((1000, 64)).astype(np.float32)
    pieces = list(parts({"embeddings": rows}, 6400))
    assert sum(len(piece) > 100 for piece in pieces) == 10
    assert max(map(num_numbers, pieces)) == 6400
    assert list(parts({"embeddings": rows[:2]}, 6400)) == [dumps({"embeddings": rows[:2]})]


def test_long_texts_are_divided_too() -> None:
    answer = {"data": [{"embedding": "A" * 800} for _ in range(20)]}
    pieces = list(parts(answer, 250))
    assert b"".join(pieces) == dumps(answer)
    assert max(map(len, pieces)) < 250 * 8 + 800


def count(node: Any) -> int:
    """Numbers, texts and the like."""
    if isinstance(node, dict):
        return sum(map(count, node.values()))
    return sum(map(count, node)) if isinstance(node, list) else 1


@given(value=nested(LEAVES))
def test_size_is_no_less_than_there_are_values(value: Any) -> None:
    assert size(value) >= count(orjson.loads(dumps(value)))


class Endless(list[Any]):
    """Counts how many items were looked at."""

    seen = 0

    def __iter__(self) -> Any:
        while True:
            self.seen += 1
            yield [0.0] * 10


def test_size_stops_where_enough_is_passed() -> None:
    endless = Endless([1])
    assert size(endless, 1000) > 1000
    assert endless.seen <= 110
    nested = [Endless([1])]
    assert size(nested, 1000) > 1000
    assert size([1.0] * 10, 3) == 10


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, 1),
        ("", 1),
        ("x" * 80, 11),
        ([1, 2, 3], 3),
        ({"a": 1}, 1),
        (np.zeros((3, 4)), 12),
        ([np.zeros((3, 4))], 13),
    ],
    ids=repr,
)
def test_size_is_about_the_numbers(value: Any, expected: int) -> None:
    assert size(value) == expected


@pytest.mark.parametrize("count", [1, writing.LARGE // 8, writing.LARGE])
def test_write_gives_the_same_bytes_whatever_the_size(count: int) -> None:
    rows = np.random.default_rng(count).standard_normal((count, 8)).astype(np.float32)
    answer = {"data": [{"index": i, "embedding": row} for i, row in enumerate(rows)]}
    content = asyncio.run(write(answer))
    assert content == dumps(answer)
    read = np.array([item["embedding"] for item in json.loads(content)["data"]], np.float32)
    assert read.tobytes() == rows.tobytes()


@pytest.mark.parametrize("num_values", [0, writing.LARGE, writing.LARGE + 1])
def test_work_off_the_loop_gives_its_result(num_values: int) -> None:
    assert asyncio.run(off_loop(lambda: "done", num_values)) == "done"


LOOP_TIMEOUT_S = 60.0  # for a loop that stands still: a failure, never a measure


def writers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads that write, one entry for each part."""
    threads: list[int] = []

    def noted(answer: Any) -> bytes:
        threads.append(threading.get_ident())
        return dumps(answer)

    monkeypatch.setattr(writing, "dumps", noted)
    return threads


@pytest.mark.parametrize("num_values", [1, writing.LARGE - 1, writing.LARGE])
def test_a_small_answer_is_written_at_once_by_the_loops_thread(
    num_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = writers(monkeypatch)
    row = np.zeros(num_values, np.float32)
    assert asyncio.run(write(row)) == dumps(row)
    assert threads == [threading.get_ident()]


@pytest.mark.parametrize(
    "answer",
    [
        np.zeros(writing.LARGE + 1, np.float32),
        np.zeros((8, writing.LARGE), np.float32),
        {"data": [{"embedding": "A" * 8 * writing.LARGE}]},
    ],
    ids=["one row", "rows", "text"],
)
def test_a_large_answer_is_written_by_another_thread_alone(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = writers(monkeypatch)
    assert asyncio.run(write(answer)) == dumps(answer)
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize(
    ("num_values", "is_here"), [(0, True), (writing.LARGE, True), (writing.LARGE + 1, False)]
)
def test_work_leaves_the_loops_thread_above_the_limit_only(num_values: int, is_here: bool) -> None:
    thread = asyncio.run(off_loop(threading.get_ident, num_values))
    assert (thread == threading.get_ident()) is is_here


@pytest.mark.parametrize("num_values", [0, writing.LARGE + 1])
def test_what_fails_off_the_loop_fails_for_the_caller(num_values: int) -> None:
    def explode() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(off_loop(explode, num_values))


def test_another_task_has_a_turn_before_each_part_of_a_large_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each part waits for the loop: if the loop waited for the parts, neither would go on."""
    rows = np.random.default_rng(0).standard_normal((6, writing.LARGE)).astype(np.float32)
    turns: list[int] = []

    async def take_turn() -> None:
        turns.append(threading.get_ident())

    async def write_beside_it() -> bytes:
        loop = asyncio.get_running_loop()

        def after_a_turn(part: Any) -> bytes:
            assert threading.get_ident() != here, "the loop's thread writes"
            asyncio.run_coroutine_threadsafe(take_turn(), loop).result(LOOP_TIMEOUT_S)
            return dumps(part)

        monkeypatch.setattr(writing, "dumps", after_a_turn)
        return await write(rows)

    here = threading.get_ident()
    assert asyncio.run(write_beside_it()) == dumps(rows)
    assert turns == [here] * 6
