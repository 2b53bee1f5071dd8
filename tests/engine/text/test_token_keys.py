"""A sequence's key is the same for the same sequence, and for nothing else."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from engine.text.tokens import Tokens

IDS = st.lists(st.integers(0, 250_001), min_size=1, max_size=40)
SEQUENCES = st.builds(
    Tokens,
    ids=IDS,
    type_ids=st.none() | st.lists(st.integers(0, 1), max_size=3),
    num_prompt=st.integers(0, 3),
    outputs=st.sampled_from([("dense",), ("dense", "sparse")]),
)


@given(SEQUENCES, SEQUENCES)
def test_keys_are_equal_if_and_only_if_sequences_are(left: Tokens, right: Tokens) -> None:
    assert left.key() == replace(left, ids=list(left.ids)).key()
    assert (left.key() == right.key()) == (left == right)


def test_what_the_ids_do_not_say_counts_too() -> None:
    plain = Tokens([1, 2, 3])
    others = [
        Tokens([1, 2, 3], type_ids=[0, 1, 1]),
        Tokens([1, 2, 3], num_prompt=1),
        Tokens([1, 2, 3], outputs=("dense", "colbert")),
        Tokens([1, 2]),
        Tokens([3, 2, 1]),
        Tokens([1, 2 + (1 << 32), 3]),
    ]
    assert len({tokens.key() for tokens in (plain, *others)}) == 7
