"""Unpadded attention: many sequences in one row, each attending only to itself and its path.

A path is the rows of a beginning that several sequences share (prefix.py). Registered with
transformers' AttentionInterface under NAME, so the model classes stay theirs and every architecture
that uses the interface works. The bounds travel as a keyword argument through the model's forward
to `unpadded_attention`, so the forward keeps no state.
Must not know models, tokenizers or pooling. The stock attention, one sequence at a time, is its
oracle (engine/selfcheck.py).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "unpadded"

# On a CPU in float32 three plain kernels (product, softmax, product) beat the fused one below some
# 300 tokens, the more so the wider the heads, causal ones too; runs of equal length gain from being
# one batch while they are short: 2.4 times for 60 of 12 tokens (bench/results/kernels.json,
# docs/log.md). In bfloat16 and float16 the plain product is 2.5 to 30 times slower than the fused.
_MAX_PLAIN_LENGTH = 256
_MAX_BATCHED_LENGTH = 64

# Siblings of equal length too: a batch takes 0.5 to 0.75 of the time for 12 tokens behind 8 to 100
# and as long as one by one for 40 behind 100 (docs/log.md). Each one in a batch copies the path's
# keys.
_MAX_BATCHED_KEYS = 128

# With a path the scores are [length, path + length]; beyond this many keys they outgrow the cache.
_MAX_PLAIN_KEYS = 1024

# Rows that attend at a time to a path longer than their segment: the mask is [block, keys].
_BLOCK = 256

_INEXPRESSIBLE = ("position_bias", "softcap", "s_aux", "sliding_window")


@dataclass(frozen=True, slots=True)
class Run:
    """`count` segments of `length` tokens, one after the other, all continuing the same path."""

    count: int
    length: int
    path: tuple[tuple[int, int], ...] = ()  # row slices (start, end)

    @property
    def num_keys(self) -> int:
        """Keys that a segment's last token attends to."""
        return self.length + sum(end - start for start, end in self.path)


@dataclass(frozen=True)
class Bounds:
    """How a row is divided into sequences: runs of segments, one after the other."""

    runs: tuple[Run, ...]

    @classmethod
    def of(
        cls, lengths: Sequence[int], paths: Sequence[tuple[tuple[int, int], ...]] | None = None
    ) -> Bounds:
        """Neighbours of equal length and path become one run: sort by length to get few."""
        segments = zip(lengths, paths or itertools.repeat(()), strict=False)
        return cls(tuple(Run(len(list(g)), *key) for key, g in itertools.groupby(segments)))

    @functools.cached_property
    def plain_runs(self) -> tuple[Run, ...]:
        """The same, with runs cut into single segments where a batch gains nothing."""
        runs: list[Run] = []
        for run in self.runs:
            short = run.length <= _MAX_BATCHED_LENGTH and run.num_keys <= _MAX_BATCHED_KEYS
            batch = short or run.length > _MAX_PLAIN_LENGTH
            runs += [run] if batch else [replace(run, count=1)] * run.count
        return tuple(runs)


def unpadded_attention(
    module: torch.nn.Module,
    query: Tensor,  # [1, heads, R, head_dim]
    key: Tensor,  # [1, kv_heads, R, head_dim]
    value: Tensor,  # [1, kv_heads, R, head_dim]
    attention_mask: Tensor | None,
    *,
    sequence_bounds: Bounds,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention output `[1, R, heads, head_dim]`. Raises ValueError for what it cannot express."""
    unsupported = [name for name in _INEXPRESSIBLE if kwargs.get(name) is not None]
    if unsupported or attention_mask is not None:
        raise ValueError(f"unpadded attention cannot express {unsupported or 'a mask'}")
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", False))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    plain = query.device.type == "cpu" and query.dtype == torch.float32
    runs = sequence_bounds.plain_runs if plain else sequence_bounds.runs
    mask = _causal_mask(runs, query) if causal and plain else None
    sizes = [run.count * run.length for run in runs]
    out = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])  # [R, heads, d]
    queries, outs = torch.split(query[0], sizes, dim=1), torch.split(out, sizes)
    for run, q, (k, v), o in zip(runs, queries, _keys(runs, key[0], value[0]), outs, strict=True):
        if run.path and not causal:
            raise ValueError("only causal attention can share a path")
        if plain and run.length <= _MAX_PLAIN_LENGTH and run.num_keys <= _MAX_PLAIN_KEYS:
            o.copy_(_attend_plain(q, k, v, run, scale, mask).transpose(0, 1))
        elif run.num_keys > 2 * run.length:
            o.copy_(_attend_blocks(q, k, v, run, scale).transpose(0, 1))
        else:
            o.copy_(_attend_fused(q, k, v, run, scale, causal).transpose(0, 1))
    return out[None], None


def _keys(runs: Sequence[Run], key: Tensor, value: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each run's keys and values `[kv_heads, n*S, d]`: every segment's behind its path's."""
    start = 0
    for path, neighbours in itertools.groupby(runs, key=lambda run: run.path):
        heads = [[t[:, first:end] for first, end in path] for t in (key, value)]
        for run in neighbours:
            size = run.count * run.length
            k, v = (t[:, start : start + size] for t in (key, value))
            yield (_behind(heads[0], k, run), _behind(heads[1], v, run)) if path else (k, v)
            start += size


def _behind(path: list[Tensor], own: Tensor, run: Run) -> Tensor:
    """`[kv_heads, n*S, d]` of the path's slices and a run's own `[kv_heads, n*L, d]`."""
    if run.count == 1:
        return torch.cat([*path, own], dim=1)
    each = [t[:, None].expand(-1, run.count, -1, -1) for t in path]
    return torch.cat([*each, own.reshape(own.shape[0], run.count, run.length, -1)], dim=2).flatten(
        1, 2
    )


def _causal_mask(runs: Sequence[Run], like: Tensor) -> Tensor:
    """What to add to the scores of the longest segment that runs plain; cut for the others."""
    length = max([run.length for run in runs if run.length <= _MAX_PLAIN_LENGTH], default=0)
    return like.new_full((length, length), -torch.inf).triu_(1)


def _attend_plain(
    q: Tensor, k: Tensor, v: Tensor, run: Run, scale: float, mask: Tensor | None
) -> Tensor:
    """One run; q `[heads, n*L, d]`, k and v `[kv_heads, n*S, d]` -> `[heads, n*L, d]`.

    Query heads of a group are rows of one product, so keys are not repeated. A lone sequence's keys
    are not copied, nor are its queries where every head has its own keys.
    """
    kv_heads, count, length = k.shape[0], run.count, run.length
    groups = q.shape[0] // kv_heads
    q = q.reshape(kv_heads, groups, count, length, -1).transpose(1, 2)
    q = q.reshape(kv_heads * count, groups * length, -1)
    k, v = (t.reshape(kv_heads * count, t.shape[1] // count, t.shape[2]) for t in (k, v))
    if mask is None:
        scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
    else:
        own = F.pad(mask[:length, :length], (k.shape[1] - length, 0)).repeat(groups, 1)
        scores = torch.baddbmm(own, q, k.transpose(1, 2), alpha=scale)
    torch.softmax(scores, -1, out=scores)
    out = torch.bmm(scores, v).view(kv_heads, count, groups, length, -1)
    return out.transpose(1, 2).reshape(kv_heads * groups, count * length, -1)


def _attend_blocks(q: Tensor, k: Tensor, v: Tensor, run: Run, scale: float) -> Tensor:
    """One run behind a long path, causal; shapes as for `_attend_plain`. Memory grows with S."""
    q, k, v = _batched(q, k, v, run.count)
    num_before = k.shape[2] - run.length
    blocks = []
    for start in range(0, run.length, _BLOCK):
        end = min(start + _BLOCK, run.length)
        seen = num_before + end
        mask = q.new_full((end - start, seen), -torch.inf).triu_(num_before + start + 1)
        block, keys, values = q[:, :, start:end], k[:, :, :seen], v[:, :, :seen]
        blocks.append(F.scaled_dot_product_attention(block, keys, values, mask, scale=scale))
    return torch.cat(blocks, dim=2).transpose(0, 1).flatten(1, 2)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, run: Run, scale: float, causal: bool) -> Tensor:
    """One run; shapes as for `_attend_plain`.

    The kernel's causal mask wants as many queries as keys: a path no longer than its segments gets
    queries of zeros, which costs less than the mask that `_attend_blocks` gives the kernel.
    """
    q, k, v = _batched(q, k, v, run.count)
    num_before = k.shape[2] - run.length
    q = F.pad(q, (0, 0, num_before, 0)) if num_before else q
    out = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=causal)
    return out[:, :, num_before:].transpose(0, 1).flatten(1, 2)


def _batched(q: Tensor, k: Tensor, v: Tensor, count: int) -> list[Tensor]:
    """`[n, heads, L, d]` and two of `[n, heads, S, d]`: keys and values once a query head."""
    if (num_groups := q.shape[0] // k.shape[0]) > 1:
        # expanded by hand: `enable_gqa` falls to the slow kernel on a CPU
        k, v = (t.repeat_interleave(num_groups, dim=0) for t in (k, v))
    return [t.reshape(t.shape[0], count, -1, t.shape[2]).transpose(0, 1) for t in (q, k, v)]


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The bounds say all that a mask would."""


def register() -> None:
    """Make `attn_implementation="unpadded"` known to transformers. Safe to call again."""
    AttentionInterface.register(NAME, unpadded_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
