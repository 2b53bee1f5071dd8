"""How much of a lane's time urgent work may take while a long step waits for it: half.

Knows no clock: it is told what was spent. Seconds earned by the long work are spent by the urgent.
"""

from __future__ import annotations

_MAX_SAVED_S = 1.0  # of a quiet time; more would let a burst stop the long work for longer


class HalfShare:
    """Urgent work may begin while what it has spent does not exceed what the other has earned."""

    def __init__(self) -> None:
        self._saved_s = 0.0

    @property
    def may_begin(self) -> bool:
        return self._saved_s >= 0

    def earn(self, seconds: float) -> None:
        """The long work ran."""
        self._saved_s = min(self._saved_s + seconds, _MAX_SAVED_S)

    def spend(self, seconds: float) -> None:
        """Urgent work ran instead."""
        self._saved_s -= seconds
