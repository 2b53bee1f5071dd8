"""Attention over a row of many sequences: each attends only to itself and the path it continues.

How a row is divided is planned once a batch (plan.py); every layer then gathers its queries, keys
and values into blocks, one for sequences that run as one product, and puts the outputs back.
`register` makes it known to transformers for architectures without a forward of our own: the bounds
travel as a keyword argument through the model's forward, which keeps no state.
Must not know models, tokenizers or pooling. The stock attention, one sequence at a time, is its
oracle (engine/selfcheck.py).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from engine.cpus import has_instructions
from engine.forward.plan import Block, Bounds, Heads

NAME = "unpadded"

# Up to this length three plain kernels (product, softmax, product) beat the fused one on a CPU, by
# dtype (docs/log.md); the fused one knows AMX. Other dtypes and devices always take the fused one.
_MAX_PLAIN_LENGTHS = {
    torch.float32: 400,
    torch.bfloat16: 256 if has_instructions("amx_bf16") else 1024,
}
# A lone short sequence in bfloat16 spends more time between plain kernels than in them.
_MAX_FUSED_SHORT = 48
# Rows that attend at a time to a path longer than their segment: the mask is [rows, keys].
_MASKED_ROWS = 256

_INEXPRESSIBLE = ("position_bias", "softcap", "s_aux", "sliding_window")


def attend(row: Tensor, bounds: Bounds, heads: Heads) -> Tensor:
    """`[T, num_queries * head_dim]` of a row `[T, stride, head_dim]`, contiguous: each token's
    queries, keys and values. Queries are already scaled.
    """
    if len(bounds.lengths) == 1 and heads.num_queries == heads.num_keys and not heads.causal:
        return _attend_alone(row, bounds.lengths[0])
    plan = bounds.plan(heads, row, _max_plain_length(row))
    vectors = row.view(-1, row.shape[2]).index_select(0, plan.gather)
    parts = iter(torch.split(vectors, plan.sizes))
    out = row.new_empty(sum(plan.sizes[::3]), row.shape[2])
    outs = torch.split(out, plan.sizes[::3])
    for block, o in zip(plan.blocks, outs, strict=True):
        kernel = _attend_plain if block.is_plain else _attend_fused
        kernel(block, heads, next(parts), next(parts), next(parts), o)
    return out.index_select(0, plan.scatter).view(row.shape[0], -1)


def _max_plain_length(like: Tensor) -> int:
    """Tokens of a sequence for which plain kernels are faster in this tensor's dtype."""
    return _MAX_PLAIN_LENGTHS.get(like.dtype, 0) if like.device.type == "cpu" else 0


def _attend_alone(row: Tensor, length: int) -> Tensor:
    """One sequence: nothing is gathered. Unused rows ask as well, and nobody sees them."""
    q, k, v = row.view(row.shape[0], 3, -1, row.shape[2]).permute(1, 2, 0, 3).unbind()
    k, v = k[:, :length], v[:, :length]
    is_short = row.dtype == torch.bfloat16 and row.shape[0] <= _MAX_FUSED_SHORT
    if is_short or row.shape[0] > _max_plain_length(row):
        out = F.scaled_dot_product_attention(q[None], k[None], v[None], scale=1.0)[0]
    else:
        scores = torch.bmm(q, k.transpose(1, 2))
        out = torch.bmm(torch.softmax(scores, -1, out=scores), v)
    return out.transpose(0, 1).reshape(row.shape[0], -1)


def _attend_plain(block: Block, heads: Heads, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Query heads that share keys are rows of one product, so keys are not repeated."""
    batch, width = block.count * heads.num_keys, q.shape[1]
    q, out = q.view(batch, -1, width), out.view(batch, -1, width)
    k, v = k.view(batch, block.num_keys, width), v.view(batch, block.num_keys, width)
    scores = torch.bmm(q, k.transpose(1, 2))
    if block.mask is not None:
        scores.view(block.count, -1, block.length, block.num_keys).add_(block.mask)
    torch.softmax(scores, -1, out=scores)
    torch.bmm(scores, v, out=out)


def _attend_fused(block: Block, heads: Heads, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Keys and values once a query head. Memory grows with the number of keys.

    The kernel's own causal mask wants as many queries as keys: behind a path no longer than the
    sequence, queries of zeros cost less than a mask.
    """
    shape = (block.count, heads.num_queries, -1, q.shape[1])
    q, k, v, out = (each.view(shape) for each in (q, k, v, out))
    before = block.num_keys - block.length
    if before > block.length:
        _attend_masked(q, k, v, out)
        return
    q = F.pad(q, (0, 0, before, 0)) if before else q
    result = F.scaled_dot_product_attention(q, k, v, scale=1.0, is_causal=heads.causal)
    out.copy_(result[:, :, before:])


def _attend_masked(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """Behind a long path: a block of rows at a time, so that no mask grows quadratically."""
    length, before = q.shape[2], k.shape[2] - q.shape[2]
    for start in range(0, length, _MASKED_ROWS):
        end = min(start + _MASKED_ROWS, length)
        seen = before + end
        mask = q.new_full((end - start, seen), -torch.inf).triu_(before + start + 1)
        rows, keys, values = q[:, :, start:end], k[:, :, :seen], v[:, :, :seen]
        out[:, :, start:end] = F.scaled_dot_product_attention(rows, keys, values, mask, scale=1.0)


def unpadded_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, heads, T, head_dim]
    key: Tensor,  # [1, kv_heads, T, head_dim]
    value: Tensor,  # [1, kv_heads, T, head_dim]
    attention_mask: Tensor | None,
    *,
    sequence_bounds: Bounds,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """For transformers: `[1, T, heads, head_dim]`. Raises ValueError for what it cannot express."""
    unsupported = [name for name in _INEXPRESSIBLE if kwargs.get(name) is not None]
    if unsupported or attention_mask is not None:
        raise ValueError(f"unpadded attention cannot express {unsupported or 'a mask'}")
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", False))
    if any(sequence_bounds.paths) and not causal:
        raise ValueError("only causal attention can share a path")
    scaled = query[0] * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    row = torch.cat([scaled, key[0], value[0]]).transpose(0, 1).contiguous()
    out = attend(row, sequence_bounds, Heads(query.shape[1], key.shape[1], causal))
    return out.view(1, query.shape[2], query.shape[1], -1), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The bounds say all that a mask would."""


def register() -> None:
    """Make `attn_implementation="unpadded"` known to transformers. Safe to call again."""
    AttentionInterface.register(NAME, unpadded_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
