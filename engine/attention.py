"""Packed attention: many sequences in one row, each attending only to itself.

Registered with transformers' AttentionInterface under NAME, so the model classes stay theirs and
every architecture that uses the interface works. The sequences' bounds travel as a keyword argument
through the model's forward to `packed_attention`, so the forward keeps no state.
Must not know models, tokenizers or pooling. The stock attention, one sequence at a time, is its
oracle (engine/selfcheck.py).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "packed"

# On a CPU three plain kernels (product, softmax, product) beat the fused one below some 300 tokens,
# the more so the wider the heads; runs of equal length gain from being one batch while they are
# short: 2.4 times for 60 of 12 tokens (bench/results/kernels.json, docs/log.md).
_MAX_PLAIN_LENGTH = 256
_MAX_BATCHED_LENGTH = 64

_INEXPRESSIBLE = ("position_bias", "softcap", "s_aux", "sliding_window")


@dataclass(frozen=True)
class Bounds:
    """How a row is cut: runs of `count` sequences of `length` tokens each, one after the other."""

    runs: tuple[tuple[int, int], ...]  # (count, length)

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Bounds:
        """Neighbours of equal length become one run: sort by length to get few."""
        return cls(tuple((len(list(g)), length) for length, g in itertools.groupby(lengths)))

    @functools.cached_property
    def plain_runs(self) -> tuple[tuple[int, int], ...]:
        """The same with runs cut to single sequences where a batch gains nothing."""
        runs = []
        for count, length in self.runs:
            alone = _MAX_BATCHED_LENGTH < length <= _MAX_PLAIN_LENGTH
            runs += [(1, length)] * count if alone else [(count, length)]
        return tuple(runs)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, heads, T, head_dim]
    key: Tensor,  # [1, kv_heads, T, head_dim]
    value: Tensor,  # [1, kv_heads, T, head_dim]
    attention_mask: Tensor | None,
    *,
    packed_bounds: Bounds,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention output `[1, T, heads, head_dim]`. Raises ValueError for what it cannot express."""
    unsupported = [name for name in _INEXPRESSIBLE if kwargs.get(name) is not None]
    if unsupported or attention_mask is not None:
        raise ValueError(f"packed attention cannot express {unsupported or 'a mask'}")
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", False))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    plain = query.device.type == "cpu" and not causal and query.shape[1] == key.shape[1]
    runs = packed_bounds.plain_runs if plain else packed_bounds.runs
    sizes = [count * length for count, length in runs]
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])  # [T, heads, d]
    rows = zip(*(torch.split(t[0], sizes, dim=1) for t in (query, key, value)), strict=True)
    for (count, length), (q, k, v), o in zip(runs, rows, torch.split(out, sizes), strict=True):
        if plain and length <= _MAX_PLAIN_LENGTH:
            o.copy_(_attend_plain(q, k, v, count, scale).transpose(0, 1))
        else:
            o.copy_(_attend_fused(q, k, v, count, scale, causal).transpose(0, 1))
    return out[None], None


def _attend_plain(q: Tensor, k: Tensor, v: Tensor, count: int, scale: float) -> Tensor:
    """One run `[heads, n*L, d]` -> `[heads, n*L, d]`. A single sequence is not copied."""
    q, k, v = (t.reshape(t.shape[0] * count, t.shape[1] // count, t.shape[2]) for t in (q, k, v))
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
    torch.softmax(scores, -1, out=scores)
    return torch.bmm(scores, v).view(-1, count * q.shape[1], v.shape[2])


def _attend_fused(
    q: Tensor, k: Tensor, v: Tensor, count: int, scale: float, causal: bool
) -> Tensor:
    """One run; q `[heads, n*L, d]`, k and v `[kv_heads, n*L, d]` -> `[heads, n*L, d]`."""
    num_groups = q.shape[0] // k.shape[0]
    if num_groups > 1:  # expanded by hand: `enable_gqa` falls to the slow kernel on a CPU
        k, v = (t.repeat_interleave(num_groups, dim=0) for t in (k, v))
    length = q.shape[1] // count
    q, k, v = (t.reshape(-1, count, length, t.shape[2]).transpose(0, 1) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal)  # [n, h, L, d]
    return out.transpose(0, 1).reshape(out.shape[1], count * length, out.shape[3])


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Bounds say everything that a mask would."""


def register() -> None:
    """Make `attn_implementation="packed"` known to transformers. Safe to call again."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
