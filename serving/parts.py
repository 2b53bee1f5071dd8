"""A request's texts in parts that the tokenizer does in some milliseconds each, so that a bulk
request lets a query pass. Items are texts, pairs of texts, or lists of ids. Must not know models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_INLINE_CHARS = 1_000  # some 0.3 ms
_PART_ITEMS = 64
_PART_CHARS = 64_000  # about 20 ms of one core; as many ids take less


def split(items: Sequence[T]) -> list[tuple[int, list[T]]]:
    """Consecutive items with the index of each part's first."""
    parts: list[tuple[int, list[T]]] = []
    num_chars = 0
    for index, item in enumerate(items):
        length = _length(item)
        if not parts or len(parts[-1][1]) == _PART_ITEMS or num_chars + length > _PART_CHARS:
            parts.append((index, []))
            num_chars = 0
        parts[-1][1].append(item)
        num_chars += length
    return parts


def is_little(items: Sequence[Any]) -> bool:
    """Not worth a hop to the tokenizer's thread and back."""
    return len(items) <= _PART_ITEMS and sum(map(_length, items)) <= _INLINE_CHARS


def _length(item: Any) -> int:
    """Characters of a text or of a pair's two, ids of a list of them."""
    is_pair = not isinstance(item, str) and len(item) > 0 and isinstance(item[0], str)
    return sum(map(len, item)) if is_pair else len(item)
