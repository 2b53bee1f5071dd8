"""The tree that finds common beginnings, and unpadded batches that run them once."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import AutoModel

from engine import selfcheck
from engine.forward import attention, plan, prefix
from engine.forward.backbone import Hidden, UnpaddedForward, transformers_row
from engine.forward.prefix import Tree, share_prefixes
from engine.text.tokens import Tokens

# Largest difference of a value of a normalised hidden state, by dtype; narrow ones are compared
# with themselves, one sequence at a time.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}

SEQUENCES = {
    "many documents behind one prefix": [(40, n) for n in (12, 9, 9, 30, 70, 12, 9)],
    "single token tails": [(100, 1)] * 5,
    "tails over the block size behind a longer prefix": [(900, 700), (900, 513), (900, 513)],
    "tails longer than the prefix": [(300, 700), (300, 1), (300, 290), (300, 290)],
    "a long prefix with short tails": [(1100, 3), (1100, 3), (1100, 40)],
    "tails of the plain kernels' longest length": [(20, 256), (20, 257), (768, 256), (769, 256)],
    "no prefix": [(0, 7), (0, 30), (0, 7)],
}


def ids(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, 600) for _ in range(length)]


def check_tree(sequences: list[list[int]], tree: Tree) -> None:
    """Every sequence is a path and a segment; positions count its tokens."""
    ends = [sum(tree.lengths[: i + 1]) for i in range(len(tree.lengths))]
    owners = [i for i, length in enumerate(tree.lengths) for _ in range(length)]
    assert len(tree.ids) == len(tree.positions) == len(owners) <= len(tree.index)
    start = 0
    for sequence in sequences:
        rows = tree.index[start : start + len(sequence)].tolist()
        assert tree.ids[rows].tolist() == sequence
        assert tree.positions[rows].tolist() == list(range(len(sequence)))
        segment = owners[rows[-1]]
        path = [row for first, end in tree.paths[segment] for row in range(first, end)]
        assert rows == [*path, *range(ends[segment] - tree.lengths[segment], ends[segment])]
        start += len(sequence)
    assert start == len(tree.index)


@pytest.mark.parametrize(
    ("sequences", "lengths", "paths"),
    [
        ([[1, 2, 3]], (3,), ((),)),
        ([[1] * 7 + [2], [1] * 7 + [3]], (8, 8), ((), ())),
        ([[1] * 15 + [2], [1] * 15 + [3]], (16, 16), ((), ())),
        ([[1] * 16 + [2], [1] * 16 + [3]], (16, 1, 1), ((), ((0, 16),), ((0, 16),))),
        ([[1] * 8 + [i] for i in (2, 3, 4)], (8, 1, 1, 1), ((), *[((0, 8),)] * 3)),
        ([[1] * 7 + [i] for i in range(2, 99)], (8,) * 97, ((),) * 97),
        ([[5, 6], [5, 6], [5, 6]], (2,), ((),)),
        ([[1] * 20, [1] * 30, [1] * 20], (20, 10), ((), ((0, 20),))),
        ([[1] * 3, [1] * 4], (3, 4), ((), ())),
    ],
)
def test_a_beginning_is_shared_where_that_saves_enough(
    sequences: list[list[int]], lengths: tuple[int, ...], paths: tuple[Any, ...]
) -> None:
    tree = share_prefixes(sequences)
    assert (tree.lengths, tree.paths) == (lengths, paths)
    check_tree(sequences, tree)


def test_leaves_come_by_length_before_the_other_branches() -> None:
    system, query = [1] * 20, [2] * 20
    tails = [[*query, 3], [4, 4], [*query, 5], [6]]
    sequences = [*(system + tail for tail in tails), [7, 7]]
    tree = share_prefixes(sequences)
    assert tree.lengths == (2, 20, 1, 2, 20, 1, 1)
    assert tree.paths == ((), (), ((2, 22),), ((2, 22),), ((2, 22),), *[((2, 22), (25, 45))] * 2)
    check_tree(sequences, tree)


def test_slices_of_a_path_that_touch_are_one() -> None:
    sequences = [[1] * 20 + [2] * 20 + [i] for i in (3, 4)] + [[1] * 20]
    assert share_prefixes(sequences).paths[-1] == ((0, 40),)


def test_a_long_chain_of_beginnings_needs_no_recursion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "_MIN_SEGMENT_TOKENS", 1)
    monkeypatch.setattr(prefix, "_MIN_SAVED_TOKENS", 1)
    tree = share_prefixes([[1] * length for length in range(1, 1500)])
    assert tree.lengths == (1,) * 1499
    assert tree.paths[-1] == ((0, 1498),)


@st.composite
def grown_sequences(draw: st.DrawFn) -> list[list[int]]:
    """Sequences that continue cuts of earlier ones, so that beginnings repeat on many levels."""
    sequences: list[list[int]] = [[]]
    for _ in range(draw(st.integers(1, 15))):
        base = draw(st.sampled_from(sequences))
        cut = draw(st.integers(0, len(base)))
        own = draw(st.lists(st.integers(0, 3), min_size=0 if cut else 1, max_size=25))
        sequences.append(base[:cut] + own)
    return draw(st.permutations(sequences[1:]))


@settings(max_examples=300, deadline=None)
@given(grown_sequences())
def test_every_sequence_is_found_again_in_its_rows(sequences: list[list[int]]) -> None:
    tree = share_prefixes(sequences)
    check_tree(sequences, tree)
    distinct = {tuple(sequence) for sequence in sequences}
    assert len(tree.ids) <= sum(len(sequence) for sequence in distinct)


attention.register()


class CountedModel:
    """A model that remembers how many rows each forward ran."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.num_rows: list[int] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        self.num_rows.append(inputs["input_ids"].shape[1])

    def unpadded(
        self,
        sequences: list[list[int]],
        share: bool = True,
        type_ids: list[int] | None = None,
    ) -> Hidden:
        self.model.set_attn_implementation(attention.NAME)
        tokens = [Tokens(sequence, type_ids) for sequence in sequences]
        with torch.inference_mode():
            row = functools.partial(transformers_row, self.model)
            return UnpaddedForward(row, share_prefixes=share)(tokens)

    def check(self, sequences: list[list[int]]) -> None:
        """Every token's hidden state against stock transformers, one sequence at a time."""
        self.num_rows.clear()
        got = self.unpadded(sequences)
        assert self.num_rows == [len(share_prefixes(sequences).ids)]
        self.model.set_attn_implementation("eager")
        with torch.inference_mode():
            alone = [
                self.model(input_ids=torch.tensor([sequence]), use_cache=False).last_hidden_state[0]
                for sequence in sequences
            ]
        self._compare(got.tokens(), torch.cat(alone))
        self._compare(got.first(), torch.stack([hidden[0] for hidden in alone]))
        self._compare(got.last(), torch.stack([hidden[-1] for hidden in alone]))

    def _compare(self, got: torch.Tensor, wanted: torch.Tensor) -> None:
        got, wanted = (functional.normalize(t.float(), dim=-1) for t in (got, wanted))
        torch.testing.assert_close(got, wanted, atol=TOLERANCE[self.model.dtype], rtol=0)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def any_model(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> CountedModel:
    dtype = getattr(torch, request.param)
    return CountedModel(AutoModel.from_pretrained(tiny_folder("tiny-qwen3"), dtype=dtype).eval())


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[[str], Path]) -> CountedModel:
    folder = tiny_folder("tiny-qwen3")
    return CountedModel(AutoModel.from_pretrained(folder, dtype=torch.float32).eval())


@pytest.mark.parametrize("shape", SEQUENCES.values(), ids=SEQUENCES.keys())
def test_tails_behind_a_prefix_get_their_own_hidden_states(
    any_model: CountedModel, shape: list[tuple[int, int]]
) -> None:
    start = ids(0, 2000)
    any_model.check([start[:shared] + ids(i + 1, own) for i, (shared, own) in enumerate(shape)])


def test_two_levels_duplicates_beginnings_and_strangers_share_a_batch(model: CountedModel) -> None:
    system, queries = ids(1, 60), [ids(2, 25), ids(3, 18)]
    batch = [system + query + ids(i, 5 + i % 4 * 9) for i in range(8) for query in queries]
    batch += [batch[0], batch[5], system, system + queries[0], batch[2][:-3]]
    batch += [ids(90, 40), ids(91, 40), ids(92, 1), ids(93, 700)]
    model.check(batch)


def test_equal_sequences_run_once_however_short(model: CountedModel) -> None:
    model.check([[5, 6], [7], [5, 6], [7], [5, 6]])
    assert model.num_rows[0] == 3


def test_a_step_that_shares_nothing_keeps_its_order(model: CountedModel) -> None:
    sequences = [ids(1, 9), ids(2, 4), ids(3, 9)]
    assert model.unpadded(sequences).index is None
    assert model.unpadded([ids(1, 9)] * 2, share=False).index is None
    model.check(sequences)


def test_token_types_keep_sequences_apart(model: CountedModel) -> None:
    model.num_rows.clear()
    model.unpadded([[5] * 9, [5] * 9], type_ids=[0] * 9)
    model.unpadded([[5] * 9, [5] * 9], type_ids=[0] * 8 + [1])
    assert model.num_rows == [18, 18]


def test_attention_in_both_directions_cannot_share_a_path() -> None:
    t = torch.zeros(1, 1, 3, 4)
    bounds = plan.Bounds((2, 1), ((), ((0, 2),)))
    with pytest.raises(ValueError, match="only causal"):
        attention.unpadded_attention(torch.nn.Module(), t, t, t, None, sequence_bounds=bounds)


def test_the_self_check_covers_every_kind_of_sharing() -> None:
    sequences = [each.ids for each in selfcheck.sample_sequences(600, 512, share_prefixes=True)]
    tree = share_prefixes(sequences)
    bounds = plan.Bounds(tree.lengths, tree.paths)
    leaves = [row for row in tree.paths if row]
    assert len({len(tree.ids), len(tree.index)}) == 2
    assert len(leaves) > len(set(leaves)) > 1
    assert any(group.path and len(group.lengths) > 1 for group in bounds.groups(256))
    assert any(len(path) > 1 for path in tree.paths)
    ends = {tuple(sequence) for sequence in sequences}
    assert len(ends) < len(sequences)
    assert any(a != b and b[: len(a)] == a for a in ends for b in ends if len(a) > 16)


def test_sharing_that_goes_wrong_fails_the_self_check_that_passes_without(
    model: CountedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = selfcheck.sample_sequences(600, 512, share_prefixes=True)
    wanted = selfcheck.run_stock(model.model, samples).hidden

    def difference(share: bool) -> str:
        model.model.set_attn_implementation(attention.NAME)
        row = functools.partial(transformers_row, model.model)
        with torch.inference_mode():
            forward = UnpaddedForward(row, share_prefixes=share)
            return selfcheck.difference(forward, samples, wanted, "float32")

    assert not difference(share=True)
    groups = plan.Bounds.groups

    def shifted(self: plan.Bounds, max_plain: int) -> list[plan.Group]:
        """Every path begins a row too early or, at the beginning of the row, too late."""
        return [
            plan.Group(
                group.lengths,
                tuple((abs(first - 1), end - 1 if first else end) for first, end in group.path),
            )
            for group in groups(self, max_plain)
        ]

    monkeypatch.setattr(plan.Bounds, "groups", shifted)
    assert difference(share=True)
    assert not difference(share=False)
