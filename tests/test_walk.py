"""How bench.walk counts a way that goes round and round."""

from __future__ import annotations

import pytest

from bench.walk import Walk


@pytest.mark.parametrize(
    ("entered", "moves"),
    [
        ("", ""),
        ("abc", "abc"),
        ("aabbb", "ab"),
        ("xababaaby", "xaby"),
        ("x" + "plalpl" * 6 + "y", "xplalply"),
        ("abcdefghijkl" * 3, "abcdefghijkl"),
        ("abcdefghijklm" * 2, "abcdefghijklm" * 2),  # longer than what counts as one run
        ("abcab", "abcab"),
    ],
)
def test_a_run_that_repeats_directly_after_itself_counts_once(entered: str, moves: str) -> None:
    assert "".join(Walk(list(entered), [0] * len(entered)).moves) == moves


def test_what_another_thread_does_meanwhile_breaks_no_run() -> None:
    assert Walk(list("ababxab"), [0, 0, 0, 0, 1, 0, 0]).moves == ["a", "b", "x"]
