"""Pooling against sentence-transformers' own module, one sequence at a time."""

from __future__ import annotations

import itertools
import random
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor

from engine.folder.sentence_files import PoolingMode
from engine.forward.backbone import Hidden, pool

MODES: tuple[PoolingMode, ...] = get_args(PoolingMode)
STOCK = {
    "last": "lasttoken",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
    "weighted_mean": "weightedmean",
}
SIZE = 8


def hidden_of(lengths: list[int], seed: int = 0) -> Hidden:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(sum(lengths), SIZE, generator=generator)
    return Hidden(states, torch.tensor(lengths))


def stock(states: Tensor, modes: tuple[PoolingMode, ...], num_prompt: int) -> Tensor:
    """One sequence's states `[L, H]`, as sentence-transformers pools them."""
    module = Pooling(SIZE, tuple(STOCK.get(mode, mode) for mode in modes), include_prompt=False)
    features = {
        "token_embeddings": states[None],
        "attention_mask": torch.ones(1, len(states), dtype=torch.int64),
        "prompt_length": num_prompt,
    }
    vector: Tensor = module(features)["sentence_embedding"][0]
    return vector


def check(hidden: Hidden, modes: tuple[PoolingMode, ...], num_prompt: list[int]) -> None:
    sequences = torch.split(hidden.tokens(), hidden.lengths.tolist())
    wanted = [stock(s, modes, n) for s, n in zip(sequences, num_prompt, strict=True)]
    got = pool(hidden, modes, num_prompt)
    assert got.shape == (len(sequences), SIZE * len(modes))
    torch.testing.assert_close(got, torch.stack(wanted), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_prompt", [[0, 0, 0, 0], [0, 3, 2, 6]])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_that_of_sentence_transformers_with_and_without_a_prompt(
    mode: PoolingMode, num_prompt: list[int]
) -> None:
    check(hidden_of([1, 5, 5, 7]), (mode,), num_prompt)


@pytest.mark.parametrize("modes", list(itertools.permutations(MODES, 2)))
def test_several_modes_are_joined_in_their_order(modes: tuple[PoolingMode, ...]) -> None:
    check(hidden_of([3, 6]), modes, [2, 0])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    modes=st.lists(st.sampled_from(MODES), min_size=1, max_size=6, unique=True),
    seed=st.integers(0, 999),
)
def test_any_step_pools_as_its_sequences_alone(
    lengths: list[int], modes: list[PoolingMode], seed: int
) -> None:
    rng = random.Random(seed)
    num_prompt = [rng.randrange(length) for length in lengths]
    check(hidden_of(lengths, seed), tuple(modes), num_prompt)


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_sequences_share_are_pooled_for_each(mode: PoolingMode) -> None:
    rows = torch.randn(6, SIZE)
    index = torch.tensor([0, 1, 2, 3, 0, 1, 4, 5])  # two sequences behind rows 0 and 1
    check(Hidden(rows, torch.tensor([4, 4]), index), (mode,), [2, 0])


@pytest.mark.parametrize("mode", MODES)
def test_where_truncation_left_the_prompt_alone_its_last_token_counts(mode: PoolingMode) -> None:
    """sentence-transformers answers zeros or nan here."""
    hidden = hidden_of([4, 2])
    got = pool(hidden, (mode,), [9, 0])
    torch.testing.assert_close(got[0], hidden.states[3], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_summed_in_float32(mode: PoolingMode) -> None:
    hidden = hidden_of([400, 3])
    half = Hidden(hidden.states.half(), hidden.lengths)
    widened = Hidden(hidden.states.half().float(), hidden.lengths)
    assert pool(half, (mode,)).dtype == torch.float32
    torch.testing.assert_close(pool(half, (mode,)), pool(widened, (mode,)), atol=0, rtol=0)
