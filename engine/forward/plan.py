"""How a row of many sequences is divided for attention, planned once a batch.

Every sequence attends only to itself and the path it continues: the rows of a beginning that
several sequences share (prefix.py). Sequences that gain from it run as one block. Must not know
models or kernels.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

# With a path the scores are [length, path + length]; beyond this many keys they outgrow the cache.
_MAX_PLAIN_KEYS = 1024
# Sequences up to this length share a block with longer ones, padded by at most this share.
_MAX_PADDED_LENGTH = 64
_MAX_PADDING = 0.25
# Equal segments behind a path share a block up to this many keys, since each copies the path's.
_MAX_SHARED_KEYS = 128
Path = tuple[tuple[int, int], ...]  # row slices (start, end)


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of an attention: `num_keys` heads of keys serve `num_queries` heads of queries."""

    num_queries: int
    num_keys: int
    causal: bool = False

    @property
    def stride(self) -> int:
        """Heads of queries, keys and values of one token."""
        return self.num_queries + 2 * self.num_keys


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that run as one block: neighbours in the row, all continuing the same path."""

    lengths: tuple[int, ...]
    path: Path = ()

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def num_before(self) -> int:
        """Rows of the path."""
        return sum(end - start for start, end in self.path)

    @property
    def num_keys(self) -> int:
        """Keys that the longest sequence's last token attends to."""
        return self.num_before + self.longest

    def is_plain(self, max_length: int) -> bool:
        return self.longest <= max_length and self.num_keys <= _MAX_PLAIN_KEYS


@dataclass(frozen=True, slots=True)
class Bounds:
    """How a row is divided into sequences: their lengths, and the path that each continues.

    Rows after the last sequence are nobody's: what attention gives for them has no meaning.
    """

    lengths: tuple[int, ...]
    paths: tuple[Path, ...] = ()  # empty: no sequence continues one
    num_unused: int = 0
    plans: dict[Heads, AttentionPlan] = field(default_factory=dict, compare=False)

    def groups(self, max_plain: int) -> list[Group]:
        """Neighbours that gain from one block. Sort by length to get few. Plain kernels take
        sequences of up to `max_plain` tokens, and padded ones in company."""
        groups: list[Group] = []
        for length, path in itertools.zip_longest(self.lengths, self.paths, fillvalue=()):
            assert isinstance(length, int)
            if groups and _may_join(groups[-1], length, path, max_plain):
                groups[-1] = Group((*groups[-1].lengths, length), path)
            else:
                groups.append(Group((length,), path))
        return groups

    def plan(self, heads: Heads, like: Tensor, max_plain: int) -> AttentionPlan:
        """Made once a batch; `like` gives the masks' dtype and device."""
        if heads not in self.plans:
            self.plans[heads] = _plan(self, heads, like, max_plain)
        return self.plans[heads]


def _may_join(group: Group, length: int, path: Path, max_plain: int) -> bool:
    if path != group.path:
        return False
    if length == group.longest and length > max_plain:
        return True
    if path:
        return length == group.longest and group.num_keys <= _MAX_SHARED_KEYS
    shortest = min(*group.lengths, length)
    longest = max(group.longest, length)
    may_pad = longest <= min(_MAX_PADDED_LENGTH, max_plain)
    return may_pad and longest <= (1 + _MAX_PADDING) * shortest


@dataclass(frozen=True, slots=True)
class Block:
    """`count` sequences of `length` queries and `num_keys` keys each; a mask is added to scores."""

    count: int
    length: int
    num_keys: int
    is_plain: bool
    mask: Tensor | None  # broadcast to [count, heads, length, num_keys]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Where every block's queries, keys and values lie in a row, and its outputs afterwards.

    `gather` takes `[head_dim]` vectors from a row `[T * stride, head_dim]`: a block's queries, keys
    and values in turn, head after head. `scatter` takes the outputs `[T * num_queries]` back.
    """

    heads: Heads
    blocks: tuple[Block, ...]
    sizes: list[int]  # vectors of each block's queries, keys and values in `gather`
    gather: Tensor
    scatter: Tensor


def _plan(bounds: Bounds, heads: Heads, like: Tensor, max_plain: int) -> AttentionPlan:
    blocks, gather, places = [], [], []
    row = base = 0
    for group in bounds.groups(max_plain):
        is_plain = group.is_plain(max_plain)
        lengths = np.array(group.lengths)
        starts = row + np.cumsum(lengths) - lengths
        offsets = np.arange(group.longest)
        # a shorter sequence repeats its last token: those keys are masked, those outputs dropped
        own = starts[:, None] + np.minimum(offsets, lengths[:, None] - 1)
        before = [
            np.broadcast_to(np.arange(*each), (len(own), each[1] - each[0])) for each in group.path
        ]
        keys = np.concatenate([*before, own], axis=1)
        each = heads.num_keys if is_plain else heads.num_queries  # heads of keys
        first = heads.num_queries + np.arange(each) // (each // heads.num_keys)
        for rows, places_of in (
            (own, np.arange(heads.num_queries)),
            (keys, first),
            (keys, first + heads.num_keys),
        ):
            gather.append((rows[:, None] * heads.stride + places_of[None, :, None]).ravel())
        outputs = base + np.arange(own.size * heads.num_queries).reshape(len(own), -1, own.shape[1])
        places.append(outputs.transpose(0, 2, 1)[offsets < lengths[:, None]])
        mask = _mask(group, heads, like) if is_plain else None
        blocks.append(Block(len(own), group.longest, group.num_keys, is_plain, mask))
        row += int(lengths.sum())
        base += outputs.size
    places.append(np.zeros((bounds.num_unused, heads.num_queries), dtype=np.int64))
    return AttentionPlan(
        heads=heads,
        blocks=tuple(blocks),
        sizes=[len(index) for index in gather],
        gather=torch.from_numpy(np.concatenate(gather)).to(like.device),
        scatter=torch.from_numpy(np.concatenate(places).ravel()).to(like.device),
    )


def _mask(group: Group, heads: Heads, like: Tensor) -> Tensor | None:
    """Of a plain block; None where every query sees every key."""
    length, before = group.longest, group.num_before
    if heads.causal:  # a padded key comes after every real query
        return like.new_full((length, group.num_keys), -torch.inf).triu_(before + 1)
    if min(group.lengths) == length:
        return None
    ends = torch.tensor(group.lengths, device=like.device)[:, None]
    hidden = torch.arange(length, device=like.device) >= ends
    return like.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None, None]
