"""One forward over many sequences, packed in a row or padded in a batch; same answer either way.

Takes token ids, gives the last hidden state of the real tokens, one sequence after the other. Must
not know tokenizers, pooling or files. Keeps no state between calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.attention import Bounds

# These families count positions from padding_idx + 1 and give a pad token no position of its own.
_OFFSET_FAMILIES = frozenset({"xlm-roberta", "roberta", "camembert", "xlm-roberta-xl"})

# A padded batch holds lengths down to this share of its longest: at most a third of it is padding.
_MIN_SHARE_OF_LONGEST = 0.67


def position_offset(config: Any) -> int:
    """How many position embeddings the family leaves unused at the start."""
    return config.pad_token_id + 1 if config.model_type in _OFFSET_FAMILIES else 0


def packed_hidden(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """`[T, H]` in the order given. Sequences of equal length should be neighbours."""
    device = model.device
    lengths = [len(ids) for ids in sequences]
    ids = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in sequences])
    pad_id = model.config.pad_token_id if position_offset(model.config) else None
    hidden: Tensor = model(
        input_ids=torch.from_numpy(ids).to(device)[None],
        position_ids=torch.from_numpy(_positions(ids, lengths, pad_id)).to(device)[None],
        packed_bounds=Bounds.of(lengths),
        **_no_cache(model),
    ).last_hidden_state
    return hidden[0]


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


def padded_hidden(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """The same by stock transformers: batches of similar length, padded right, masked."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    rows: list[Tensor | None] = [None] * len(sequences)
    for batch in _batches(order, sequences):
        lengths = [len(sequences[i]) for i in batch]
        hidden = _padded_batch(model, [sequences[i] for i in batch], max(lengths))
        for i, length, row in zip(batch, lengths, hidden, strict=True):
            rows[i] = row[:length]
    return torch.cat([row for row in rows if row is not None])


def _batches(order: list[int], sequences: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Cut indices sorted by falling length where padding would waste too much."""
    batch: list[int] = []
    for i in order:
        if batch and len(sequences[i]) < _MIN_SHARE_OF_LONGEST * len(sequences[batch[0]]):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _padded_batch(model: Any, sequences: list[Sequence[int]], longest: int) -> Tensor:
    """`[n, longest, H]`"""
    pad_id = model.config.pad_token_id or 0
    ids = np.full((len(sequences), longest), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    hidden: Tensor = model(
        input_ids=torch.from_numpy(ids).to(model.device),
        attention_mask=torch.from_numpy(mask).to(model.device),
        **_no_cache(model),
    ).last_hidden_state
    return hidden


def _no_cache(model: Any) -> dict[str, bool]:
    """Decoders keep keys and values for a next token that never comes, unless told not to."""
    return {"use_cache": False} if getattr(model.config, "use_cache", None) is not None else {}
