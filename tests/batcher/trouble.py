"""How a fake batch ends: with its rows, or with what may go wrong in a real one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

RAISES, LACKS_MEMORY, HAS_A_BAD_ROW = "raise", "memory", "row"
TROUBLES = (RAISES, LACKS_MEMORY, HAS_A_BAD_ROW)


def rows_of(group: Hashable, payloads: Sequence[str], trouble: str) -> list[Any]:
    """A row names its group and its payload. Memory is never lacking for one payload alone."""
    if trouble == RAISES:
        raise ValueError
    if trouble == LACKS_MEMORY and len(payloads) > 1:
        raise MemoryError
    rows: list[Any] = [f"{group}{payload}" for payload in payloads]
    if trouble == HAS_A_BAD_ROW:
        rows[0] = OverflowError("bad")
    return rows
