"""From token vectors to one vector a sequence.

Pure functions; must not know batching, files or HTTP. L2 is not applied here: some dialects want
raw vectors, and cutting to `dimensions` comes first. Formulas are sentence-transformers' Pooling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.forward import Hidden
from engine.sentence_files import PoolingMode

Pooling = PoolingMode


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
