"""Packed attention: many sequences in one row, each attending only to itself.

Registered with transformers' AttentionInterface under NAME, so the model classes stay theirs and
every architecture that uses the interface works. The sequences' bounds travel as a keyword argument
through the model's forward to `packed_attention`, so the forward keeps no state.
Must not know models, tokenizers or pooling. The stock attention, one sequence at a time, is its
oracle (engine/selfcheck.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "packed"

# Up to this length three plain kernels (product, softmax, product) beat the fused one on a CPU:
# 0.23 against 0.31 ms at 100 tokens, 12 heads of 32; equal near 300 (docs/log.md).
_MAX_PLAIN_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Bounds:
    """How a row is cut: runs of `count` sequences of `length` tokens each, one after the other."""

    runs: tuple[tuple[int, int], ...]  # (count, length)

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Bounds:
        """Neighbours of equal length become one run: sort by length to get few."""
        return cls(tuple((len(list(g)), length) for length, g in itertools.groupby(lengths)))


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
    unsupported = [k for k in ("position_bias", "softcap", "s_aux") if kwargs.get(k) is not None]
    if unsupported or attention_mask is not None:
        raise ValueError(f"packed attention cannot express {unsupported or 'a mask'}")
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", False))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    groups = query.shape[1] // key.shape[1]
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    start = 0
    for count, length in packed_bounds.runs:
        rows = slice(start, start + count * length)
        start = rows.stop
        q, k, v = (t[0, :, rows].transpose(0, 1) for t in (query, key, value))  # [n*L, h, d]
        out[0, rows] = _attend(q, k, v, count, scale, causal, groups)
    return out, None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, count: int, scale: float, causal: bool, groups: int
) -> Tensor:
    """One run; q `[n*L, heads, d]`, k and v `[n*L, kv_heads, d]` -> `[n*L, heads, d]`."""
    length = q.shape[0] // count
    if count == 1 and not causal and groups == 1 and length <= _MAX_PLAIN_LENGTH and _on_cpu(q):
        return _attend_plain(q, k, v, scale)
    q, k, v = (
        t.reshape(count, length, *t.shape[1:]).transpose(1, 2) for t in (q, k, v)
    )  # [n, h, L, d]
    if groups > 1:  # expanded by hand: `enable_gqa` falls to the slow kernel on a CPU
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    out = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal)
    return out.transpose(1, 2).flatten(0, 1)


def _attend_plain(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    q, k, v = (t.transpose(0, 1) for t in (q, k, v))  # [h, L, d]
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
    torch.softmax(scores, -1, out=scores)
    return torch.bmm(scores, v).transpose(0, 1)


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Bounds say everything that a mask would."""


def register() -> None:
    """Make `attn_implementation="packed"` known to transformers. Safe to call again."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
