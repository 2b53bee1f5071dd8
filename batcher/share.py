"""How much of a lane's time urgent work may take while long steps wait for it: less than half.

Knows no clock: it is told what was spent. Each second of the long work earns a part of one for the
urgent, so that with all that changing over costs, and HTTP on the same cores, the long work keeps
two fifths of its rate.
"""

from __future__ import annotations

_EARNED = 2 / 3  # seconds of urgent work for one of long work: two parts in five
_MAX_SAVED_S = 1.0  # of a quiet time; more would let a burst stop the long work for longer
_MAX_DEBT_S = 10.0  # one step that took for ever must not keep the urgent out for as long


class Share:
    """Urgent work may begin while what it has spent does not exceed what the other has earned."""

    def __init__(self) -> None:
        self._saved_s = 0.0

    @property
    def may_begin(self) -> bool:
        return self._saved_s >= 0

    def earn(self, seconds: float) -> None:
        """The long work ran."""
        self._saved_s = min(self._saved_s + seconds * _EARNED, _MAX_SAVED_S)

    def spend(self, seconds: float) -> None:
        """Urgent work ran instead."""
        self._saved_s = max(self._saved_s - seconds, -_MAX_DEBT_S)
