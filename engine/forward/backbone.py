"""A batch of token ids to hidden states, and hidden states to one vector a sequence.

A batch runs unpadded, as one row of real tokens, or padded, by stock transformers; the answer is
the same either way. Keeps no state between calls. Must not know tokenizers, files or jobs.
L2 normalisation is not applied here: some dialects want raw vectors, and cutting to `dimensions`
comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.folder.recipe import OFFSET_FAMILIES
from engine.folder.sentence_files import PoolingMode
from engine.forward import prefix
from engine.forward.plan import Bounds
from engine.text.tokens import Tokens

# A padded batch holds lengths down to this share of its longest: at most a third of it is padding.
_MIN_SHARE_OF_LONGEST = 0.67

Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A model without its head, and how a batch runs through it."""

    forward: Callable[[Sequence[Tokens]], Hidden]  # equal lengths should be neighbours
    words: Tensor  # [vocabulary, H]: the embedding table
    device: str
    dtype: str  # what linear layers compute in
    dtype_reason: str
    layout: Literal["unpadded", "padded"]
    linear: Literal["prepacked", "plain"]
    shares_prefixes: bool

    def hidden(self, batch: Sequence[Tokens]) -> tuple[Hidden, list[int]]:
        """States of the batch's sequences in the order that is returned with them."""
        order = sorted(range(len(batch)), key=lambda i: len(batch[i].ids))
        return self.forward([batch[i] for i in order]), order

    def describe(self) -> dict[str, str | int]:
        return {
            "device": self.device,
            "dtype": self.dtype,
            "dtype_reason": self.dtype_reason,
            "layout": self.layout,
            "linear": self.linear,
        }


@dataclass(frozen=True, slots=True)
class Hidden:
    """Last hidden states of a batch's sequences.

    `index[sum(lengths[:i]) + j]` is the row of `states` that holds token j of sequence i; sequences
    may share rows. None: the rows are the sequences' tokens, one sequence after the other.
    """

    states: Tensor  # [R, H]
    lengths: Tensor  # int64 [n]
    index: Tensor | None = None  # int64 [T], T = sum(lengths)

    def tokens(self) -> Tensor:
        """`[T, H]`: every sequence's tokens, one sequence after the other."""
        return self.states if self.index is None else self.states.index_select(0, self.index)

    def at(self, positions: Tensor) -> Tensor:
        """`[n, H]` of int64 `[n]` positions, counted as in `tokens()`."""
        rows = positions if self.index is None else self.index.index_select(0, positions)
        return self.states.index_select(0, rows)

    def first(self) -> Tensor:
        """`[n, H]`: each sequence's first token."""
        return self.at(self.lengths.cumsum(0) - self.lengths)

    def last(self) -> Tensor:
        """`[n, H]`: each sequence's last token."""
        return self.at(self.lengths.cumsum(0) - 1)


def pool(hidden: Hidden, modes: Sequence[PoolingMode], num_prompt: Sequence[int] = ()) -> Tensor:
    """float32 `[n, H * len(modes)]`, the modes' vectors one after the other.

    `num_prompt[i]` leading tokens of sequence i take no part; at least its last token does.
    """
    skipped: Tensor | None = None
    if any(num_prompt):
        skipped = torch.tensor(list(num_prompt), device=hidden.lengths.device)
        skipped = torch.minimum(skipped, hidden.lengths - 1)
    pooled = [_pool_one(hidden, mode, skipped) for mode in modes]
    return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)


def _pool_one(hidden: Hidden, mode: PoolingMode, skipped: Tensor | None) -> Tensor:
    if mode == "last":
        return hidden.last().float()
    if mode == "cls":
        starts = hidden.lengths.cumsum(0) - hidden.lengths
        return hidden.at(starts if skipped is None else starts + skipped).float()
    states, owners, positions = _counted(hidden, skipped)
    num = len(hidden.lengths)
    counts = torch.bincount(owners, minlength=num).unsqueeze(1)
    if mode == "max":
        out = torch.full((num, states.shape[1]), -torch.inf, device=states.device)
        return out.scatter_reduce_(0, owners.unsqueeze(1).expand_as(states), states, "amax")
    sums = torch.zeros(num, states.shape[1], device=states.device)
    if mode == "weighted_mean":
        weights = (positions + 1).float()
        totals = torch.zeros(num, device=states.device).index_add_(0, owners, weights)
        return sums.index_add_(0, owners, states * weights.unsqueeze(1)) / totals.unsqueeze(1)
    sums.index_add_(0, owners, states)
    return sums / (counts.sqrt() if mode == "mean_sqrt_len" else counts)


def _counted(hidden: Hidden, skipped: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """States float32 `[T', H]` that count, and the sequence and the position of each, `[T']`."""
    states, lengths = hidden.tokens().float(), hidden.lengths
    owners = torch.repeat_interleave(torch.arange(len(lengths), device=states.device), lengths)
    starts = lengths.cumsum(0) - lengths
    positions = torch.arange(len(owners), device=states.device) - starts[owners]
    if skipped is None:
        return states, owners, positions
    counts = positions >= skipped[owners]
    return states[counts], owners[counts], positions[counts]


@dataclass(frozen=True, slots=True)
class UnpaddedForward:
    """All sequences of a batch in one row.

    `row` gives the states `[R, H]` of ids and positions `[R]`; `pad_id` is that of families whose
    positions start behind it. `share_prefixes` runs a common beginning once; only causal models may
    ask for it. `rounds_up` adds unused rows, so that there are few different numbers of rows, since
    oneDNN prepares each of them for milliseconds and forgets it when others come.
    """

    row: Callable[[Tensor, Tensor, Tensor | None, Bounds], Tensor]
    device: str = "cpu"
    pad_id: int | None = None
    share_prefixes: bool = False
    rounds_up: bool = False

    def __call__(self, sequences: Sequence[Tokens]) -> Hidden:
        lengths = [len(tokens.ids) for tokens in sequences]
        has_types = any(tokens.type_ids for tokens in sequences)
        if self.share_prefixes and not has_types:
            tree = prefix.share_prefixes([tokens.ids for tokens in sequences])
            if len(tree.ids) < len(tree.index):
                bounds = Bounds(tree.lengths, tree.paths)
                states = self._run(tree.ids, tree.positions, None, bounds)
                return Hidden(states, self._tensor(lengths), self._tensor(tree.index))
        ids = np.concatenate([np.asarray(tokens.ids, dtype=np.int64) for tokens in sequences])
        positions = _positions(ids, lengths, self.pad_id)
        type_ids = _type_ids(sequences) if has_types else None
        states = self._run(ids, positions, type_ids, Bounds(tuple(lengths)))
        return Hidden(states, self._tensor(lengths))

    def _run(self, ids: Array, positions: Array, type_ids: Array | None, bounds: Bounds) -> Tensor:
        """`[R, H]`"""
        num_rows = len(ids)
        if self.rounds_up and (num_unused := -num_rows % _step(num_rows)):
            bounds = replace(bounds, num_unused=num_unused)
            # a row's repetition is as good as any: ids and positions that the model knows
            ids, positions = (np.pad(each, (0, num_unused), "edge") for each in (ids, positions))
            if type_ids is not None:
                type_ids = np.pad(type_ids, (0, num_unused))
        types = None if type_ids is None else self._tensor(type_ids)
        return self.row(self._tensor(ids), self._tensor(positions), types, bounds)[:num_rows]

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, device=self.device)


def _step(num_rows: int) -> int:
    """What a number of rows is rounded up to a multiple of: a query adds three rows at most, a full
    batch 2 %."""
    return 4 if num_rows <= 32 else 8 if num_rows <= 64 else 32


def pad_id_of(config: Any) -> int | None:
    """See UnpaddedForward."""
    return config.pad_token_id if config.model_type in OFFSET_FAMILIES else None


def transformers_row(
    model: Any, ids: Tensor, positions: Tensor, type_ids: Tensor | None, bounds: Bounds
) -> Tensor:
    """`[R, H]` by transformers' own forward, whose attention is ours."""
    inputs = {} if type_ids is None else {"token_type_ids": type_ids[None]}
    states: Tensor = model(
        input_ids=ids[None],
        position_ids=positions[None],
        sequence_bounds=bounds,
        **inputs,
        **_no_cache(model),
    ).last_hidden_state[0]
    return states


def _type_ids(sequences: Sequence[Tokens]) -> Array:
    """int64 `[T]`: most families know no other than 0."""
    rows = [tokens.type_ids or [0] * len(tokens.ids) for tokens in sequences]
    return np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])


def _positions(ids: Array, lengths: Sequence[int], pad_id: int | None) -> Array:
    """int64 `[T]`, counted from each sequence's start as transformers does for the family."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    if pad_id is None:
        return np.arange(len(ids)) - np.repeat(starts, lengths)
    real = (ids != pad_id).astype(np.int64)
    counted = np.cumsum(real)
    before = np.repeat(counted[starts] - real[starts], lengths)
    positions: Array = (counted - before) * real + pad_id
    return positions


def padded_hidden(model: Any, sequences: Sequence[Tokens]) -> Hidden:
    """The same by stock transformers: batches of similar length, padded right, masked."""
    lengths = [len(tokens.ids) for tokens in sequences]
    order = sorted(range(len(sequences)), key=lambda i: -lengths[i])
    rows: list[Tensor | None] = [None] * len(sequences)
    for batch in _batches(order, lengths):
        hidden = _padded_batch(model, [sequences[i] for i in batch])
        for i, row in zip(batch, hidden, strict=True):
            rows[i] = row[: lengths[i]]
    states = torch.cat([row for row in rows if row is not None])
    return Hidden(states, torch.tensor(lengths, device=states.device))


def _batches(order: list[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Cut indices sorted by falling length where padding would waste too much."""
    batch: list[int] = []
    for i in order:
        if batch and lengths[i] < _MIN_SHARE_OF_LONGEST * lengths[batch[0]]:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _padded_batch(model: Any, sequences: list[Tokens]) -> Tensor:
    """`[n, longest, H]`"""
    hidden: Tensor = model(**padded_inputs(model, sequences)).last_hidden_state
    return hidden


def padded_inputs(model: Any, sequences: Sequence[Tokens]) -> dict[str, Any]:
    """What a transformers model takes: all sequences as one batch, padded right."""
    shape = len(sequences), max(len(tokens.ids) for tokens in sequences)
    ids = np.full(shape, model.config.pad_token_id or 0, dtype=np.int64)
    mask, type_ids = np.zeros_like(ids), np.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens.ids)] = tokens.ids
        mask[row, : len(tokens.ids)] = 1
        type_ids[row, : len(tokens.ids)] = tokens.type_ids or 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if type_ids.any():
        inputs["token_type_ids"] = type_ids
    on_device = {name: torch.from_numpy(array).to(model.device) for name, array in inputs.items()}
    return {**on_device, **_no_cache(model)}


def _no_cache(model: Any) -> dict[str, bool]:
    """Decoders keep keys and values for a next token that never comes, unless told not to."""
    return {"use_cache": False} if getattr(model.config, "use_cache", None) is not None else {}
