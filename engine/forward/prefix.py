"""Which tokens of a batch need to run only once: a radix tree over the sequences' token ids.

For causal models a token's hidden state depends on what comes before it alone, so sequences that
begin alike can share the rows of their beginning. Gives a row of segments: each continues its path,
the segments before it on the way from its sequences' start. Plain numpy: must not know torch or
attention. A sequence's tokens are always its path's rows and its own, in order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Slices = tuple[tuple[int, int], ...]  # of rows, each from start to end

# A lone segment's attention to a path costs a few kernels more in every layer: as much as half a
# token of a model as wide as Qwen3-0.6B, up to five tokens of one 384 wide (docs/log.md). A shorter
# beginning, such as a start token and a common word, may cost more than it saves.
_MIN_SEGMENT_TOKENS = 8
_MIN_SAVED_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Tree:
    """A batch cut into segments, one after the other in a row of R tokens.

    `index[sum(lengths of sequences[:i]) + j]` is the row that holds token j of sequence i.
    """

    ids: Array  # [R]
    positions: Array  # [R], counted from the start of the row's sequences
    index: Array  # [T], T = all sequences' tokens
    lengths: tuple[int, ...]  # tokens of each segment
    paths: tuple[Slices, ...]  # the rows before each segment, neighbouring slices joined


@dataclass(slots=True)
class _Node:
    """Tokens `start` to `end` of the sorted sequences `first` to `last`."""

    start: int
    end: int
    first: int
    last: int
    row: int = 0
    path: Slices = ()
    children: list[_Node] = field(default_factory=list)


def share_prefixes(sequences: Sequence[Sequence[int]]) -> Tree:
    """Equal sequences once, and common beginnings where that saves enough. None may be empty."""
    keys = [tuple(sequence) for sequence in sequences]
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    sizes = np.array([len(key) for key in places], dtype=np.int64)
    ids = np.array(list(itertools.chain.from_iterable(places)), dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    order = _sorted(ids, starts, sizes)
    starts, sizes = starts[order], sizes[order]
    root, leaves = _grow(_common(ids, starts, sizes), sizes)
    nodes = _lay_out(root)
    lengths = np.array([node.end - node.start for node in nodes], dtype=np.int64)
    depths = np.array([node.start for node in nodes], dtype=np.int64)
    firsts = np.array([node.first for node in nodes], dtype=np.int64)
    ranks = np.argsort(order).tolist()
    return Tree(
        ids=ids[_ranges(starts[firsts] + depths, lengths)],
        positions=_ranges(depths, lengths),
        index=_index([leaves[ranks[places[key]]] for key in keys]),
        lengths=tuple(lengths.tolist()),
        paths=tuple(node.path for node in nodes),
    )


def _sorted(ids: Array, starts: Array, sizes: Array) -> Array:
    """Order of the sequences by their ids, compared as bytes: big-endian ones sort as numbers."""
    content = ids.astype(">u4").tobytes()
    spans = zip((4 * starts).tolist(), (4 * (starts + sizes)).tolist(), strict=True)
    keys = [content[start:end] for start, end in spans]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _common(ids: Array, starts: Array, sizes: Array) -> list[int]:
    """How many leading tokens each sequence shares with the next, all pairs compared at once."""
    shorter = np.minimum(sizes[:-1], sizes[1:])
    if not len(shorter):
        return []
    offsets = _ranges(np.zeros_like(shorter), shorter)
    same = ids[_ranges(starts[:-1], shorter)] == ids[_ranges(starts[1:], shorter)]
    until = np.where(same, np.repeat(shorter, shorter), offsets)
    common: list[int] = np.minimum.reduceat(until, np.cumsum(shorter) - shorter).tolist()
    return common


def _grow(common: list[int], sizes: Array) -> tuple[_Node, list[_Node]]:
    """The root, which has no tokens, and the node at which each sorted sequence ends."""
    ends = sizes.tolist()
    shared = [(first, -last, depth) for depth, first, last in _groups(common)]
    alone = [(i, -i, end) for i, end in enumerate(ends)]
    stack = [_Node(0, 0, 0, len(ends) - 1)]
    leaves = []
    for first, negative_last, depth in sorted(shared + alone):  # every group before its parts
        last = -negative_last
        while stack[-1].last < first:
            stack.pop()
        parent = stack[-1]
        own = depth - parent.end
        if own and (first == last or _is_worth_it(own, last - first)):
            node = _Node(parent.end, depth, first, last)
            parent.children.append(node)
            stack.append(node)
        if first == last:
            leaves.append(stack[-1])
    return stack[0], leaves


def _is_worth_it(length: int, num_spared: int) -> bool:
    return length >= _MIN_SEGMENT_TOKENS and length * num_spared >= _MIN_SAVED_TOKENS


def _groups(common: list[int]) -> Iterator[tuple[int, int, int]]:
    """(depth, first, last): each largest group of sequences with the same first `depth` ids."""
    open_groups = [(0, 0)]
    for i, depth in enumerate([*common, 0]):
        first = i
        while open_groups[-1][0] > depth:
            group_depth, first = open_groups.pop()
            yield group_depth, first, i
        if open_groups[-1][0] < depth:
            open_groups.append((depth, first))


def _lay_out(root: _Node) -> list[_Node]:
    """All nodes but the root in the row's order: each before its children, leaves of a parent by
    length so that equals are neighbours, then the parent's other children."""
    nodes: list[_Node] = []
    row = 0
    waiting = [root]
    while waiting:
        node = waiting.pop()
        node.row = row
        row += node.end - node.start
        if node is not root:
            nodes.append(node)
        path = _rows(node)
        node.children.sort(key=lambda child: (bool(child.children), child.end))
        for child in reversed(node.children):
            child.path = path
            waiting.append(child)
    return nodes


def _rows(node: _Node) -> Slices:
    """From the sequences' start to the node's end."""
    own = (node.row, node.row + node.end - node.start)
    if node.path and node.path[-1][1] == own[0]:
        return (*node.path[:-1], (node.path[-1][0], own[1]))
    return (*node.path, own) if own[1] > own[0] else node.path


def _index(leaves: list[_Node]) -> Array:
    """int64 `[T]` of the node at which each sequence ends."""
    slices = np.array([s for leaf in leaves for s in _rows(leaf)], dtype=np.int64).reshape(-1, 2)
    return _ranges(slices[:, 0], slices[:, 1] - slices[:, 0])


def _ranges(starts: Array, lengths: Array) -> Array:
    """`starts[i]`, `starts[i] + 1` and so on, `lengths[i]` numbers, for every i in turn."""
    ranges: Array = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    ranges += np.arange(len(ranges))
    return ranges
