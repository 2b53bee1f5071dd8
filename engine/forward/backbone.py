"""A batch of token ids to hidden states, and hidden states to one vector a sequence.

A batch runs unpadded, as one row of real tokens, or padded, by stock transformers; the answer is
the same either way. Keeps no state between calls. Must not know tokenizers, files or jobs.
L2 normalisation is not applied here: some dialects want raw vectors, and cutting to `dimensions`
comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from engine.folder.recipe import OFFSET_FAMILIES
from engine.folder.sentence_files import PoolingMode
from engine.forward import prefix
from engine.forward.attention import Bounds
from engine.text.tokens import Tokens

# A padded batch holds lengths down to this share of its longest: at most a third of it is padding.
_MIN_SHARE_OF_LONGEST = 0.67


@dataclass(frozen=True, slots=True)
class Backbone:
    """transformers' model without a head, and how a batch runs through it."""

    model: Any
    layout: Literal["unpadded", "padded"]
    linear: Literal["prepacked", "plain"]
    shares_prefixes: bool

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table: ids from 0 up to it have one."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def hidden(self, batch: Sequence[Tokens]) -> tuple[Hidden, list[int]]:
        """States of the batch's sequences in the order that is returned with them."""
        order = sorted(range(len(batch)), key=lambda i: len(batch[i].ids))
        sequences = [batch[i] for i in order]
        if self.layout == "padded":
            return padded_hidden(self.model, sequences), order
        return unpadded_hidden(self.model, sequences, share_prefixes=self.shares_prefixes), order

    def describe(self) -> dict[str, str | int]:
        return {
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
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


def unpadded_hidden(
    model: Any, sequences: Sequence[Tokens], *, share_prefixes: bool = False
) -> Hidden:
    """All sequences in one row. Those of equal length should be neighbours.

    `share_prefixes` runs a common beginning once; only causal models may ask for it.
    """
    device = model.device
    lengths = [len(tokens.ids) for tokens in sequences]
    if share_prefixes and not any(tokens.type_ids for tokens in sequences):
        tree = prefix.share_prefixes([tokens.ids for tokens in sequences])
        if len(tree.ids) < len(tree.index):
            bounds = Bounds.of(tree.lengths, tree.paths)
            states = _unpadded_row(model, tree.ids, tree.positions, bounds)
            index = torch.from_numpy(tree.index).to(device)
            return Hidden(states, torch.tensor(lengths, device=device), index)
    ids = np.concatenate([np.asarray(tokens.ids, dtype=np.int64) for tokens in sequences])
    pad_id = model.config.pad_token_id if model.config.model_type in OFFSET_FAMILIES else None
    positions = _positions(ids, lengths, pad_id)
    bounds = Bounds.of(lengths)
    states = _unpadded_row(model, ids, positions, bounds, **_type_ids(sequences, device))
    return Hidden(states, torch.tensor(lengths, device=device))


def _unpadded_row(
    model: Any, ids: np.ndarray, positions: np.ndarray, bounds: Bounds, **inputs: Tensor
) -> Tensor:
    """`[R, H]`"""
    states: Tensor = model(
        input_ids=torch.from_numpy(ids).to(model.device)[None],
        position_ids=torch.from_numpy(positions).to(model.device)[None],
        sequence_bounds=bounds,
        **inputs,
        **_no_cache(model),
    ).last_hidden_state[0]
    return states


def _type_ids(sequences: Sequence[Tokens], device: Any) -> dict[str, Tensor]:
    """`[1, T]`, only where one differs from 0: most families know no other."""
    if not any(tokens.type_ids for tokens in sequences):
        return {}
    rows = [tokens.type_ids or [0] * len(tokens.ids) for tokens in sequences]
    ids = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return {"token_type_ids": torch.from_numpy(ids).to(device)[None]}


def _positions(ids: np.ndarray, lengths: Sequence[int], pad_id: int | None) -> np.ndarray:
    """int64 `[T]`, counted from each sequence's start as transformers does for the family."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    if pad_id is None:
        return np.arange(len(ids)) - np.repeat(starts, lengths)
    real = (ids != pad_id).astype(np.int64)
    counted = np.cumsum(real)
    before = np.repeat(counted[starts] - real[starts], lengths)
    positions: np.ndarray = (counted - before) * real + pad_id
    return positions


def padded_hidden(model: Any, sequences: Sequence[Tokens]) -> Hidden:
    """The same by stock transformers: batches of similar length, padded right, masked."""
    lengths = [len(tokens.ids) for tokens in sequences]
    order = sorted(range(len(sequences)), key=lambda i: -lengths[i])
    rows: list[Tensor | None] = [None] * len(sequences)
    for batch in _batches(order, lengths):
        hidden = _padded_batch(model, [sequences[i] for i in batch], lengths[batch[0]])
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


def _padded_batch(model: Any, sequences: list[Tokens], longest: int) -> Tensor:
    """`[n, longest, H]`"""
    pad_id = model.config.pad_token_id or 0
    ids = np.full((len(sequences), longest), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    type_ids = np.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens.ids)] = tokens.ids
        mask[row, : len(tokens.ids)] = 1
        type_ids[row, : len(tokens.ids)] = tokens.type_ids or 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if type_ids.any():
        inputs["token_type_ids"] = type_ids
    on_device = {name: torch.from_numpy(array).to(model.device) for name, array in inputs.items()}
    hidden: Tensor = model(**on_device, **_no_cache(model)).last_hidden_state
    return hidden


def _no_cache(model: Any) -> dict[str, bool]:
    """Decoders keep keys and values for a next token that never comes, unless told not to."""
    return {"use_cache": False} if getattr(model.config, "use_cache", None) is not None else {}
