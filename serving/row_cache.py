"""Rows of recent texts and pairs, by their token ids: exact, bounded in bytes, off by default.

Belongs to the event loop. Must not know models: a row is whatever a model gave, and is never
changed by whoever gets it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import cachetools
import numpy as np

from engine.outputs import Outputs

_ENTRY_BYTES = 400  # of a key, the records around it, and their places


class RowCache:
    """The least recently used go first."""

    def __init__(self, max_bytes: int) -> None:
        self._rows: cachetools.LRUCache[Hashable, Any] = cachetools.LRUCache(
            max_bytes, getsizeof=_num_bytes
        )
        self.num_hits = 0
        self.num_misses = 0

    @property
    def num_bytes(self) -> int:
        return int(self._rows.currsize)

    def find(self, model: Hashable, keys: Sequence[Hashable]) -> list[Any]:
        """A row a key, None where there is none. `model` is one loading of a model."""
        rows = [self._rows.get((model, key)) for key in keys]
        num_hits = sum(row is not None for row in rows)
        self.num_hits += num_hits
        self.num_misses += len(rows) - num_hits
        return rows

    def keep(self, model: Hashable, keys: Sequence[Hashable], rows: Sequence[Any]) -> None:
        for key, row in zip(keys, rows, strict=True):
            own = _alone(row)
            if _num_bytes(own) <= self._rows.maxsize:
                self._rows[model, key] = own


def _alone(row: Any) -> Any:
    """A copy: the row of a batch's array would keep the whole array."""
    if not isinstance(row, Outputs):
        return row
    sparse = row.sparse  # arrays of their own already
    return Outputs(row.dense.copy(), sparse, _copied(row.colbert), _copied(row.tokens))


def _copied(array: Any) -> Any:
    return None if array is None else array.copy()


def _num_bytes(row: Any) -> int:
    if not isinstance(row, Outputs):
        return _ENTRY_BYTES
    arrays: list[Any] = [row.dense, row.colbert, row.tokens]
    if row.sparse is not None:
        arrays += [row.sparse.token_ids, row.sparse.weights]
    return _ENTRY_BYTES + sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
