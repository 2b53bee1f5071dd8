"""Where texts become tokens: one caller at a time, in parts of some milliseconds each.

Items are texts, pairs of texts, or lists of token ids. Must not know models.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_INLINE_CHARS = 1_000  # some 0.3 ms
_PART_ITEMS = 64
_PART_CHARS = 64_000  # about 20 ms of one core; as many ids take less


class TokenizerThread:
    """Where texts become tokens: a tokenizer serves one caller at a time.

    What takes less than a hop to the thread and back is done on the event loop, when nobody else
    is at it.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._lock = threading.Lock()

    async def in_parts(
        self, items: Sequence[T], work: Callable[[list[T], int], Sequence[R]]
    ) -> AsyncIterator[Sequence[R]]:
        """`work(part, index of its first)`, one small part after the other, so that a bulk request
        lets a query pass."""
        is_little = len(items) <= _PART_ITEMS and sum(map(_length, items)) <= _INLINE_CHARS
        if is_little and self._lock.acquire(blocking=False):
            try:
                rows = work(list(items), 0)
            finally:
                self._lock.release()
            yield rows
            return
        for first, part in _split(items):
            yield await self.run(partial(work, part, first))

    async def run(self, work: Callable[[], T]) -> T:
        """On the thread, however short it is."""

        def locked() -> T:
            with self._lock:
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._executor, locked)

    def stop(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


def _split(items: Sequence[T]) -> list[tuple[int, list[T]]]:
    """Consecutive items, with the index of each part's first."""
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


def _length(item: Any) -> int:
    """Characters of a text or of a pair's two, ids of a list of them."""
    is_pair = not isinstance(item, str) and len(item) > 0 and isinstance(item[0], str)
    return sum(map(len, item)) if is_pair else len(item)
