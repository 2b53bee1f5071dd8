"""A job: one request's sequences on their way through a lane.

It is a record with a callback; it knows no event loop, plan policy or tensor. The lane's lock
guards it until it has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from batcher.plan import Claim


class Job:
    """`payloads[i]` costs `costs[i]` tokens and becomes `rows[i]`. Times: perf_counter seconds.

    `alone` is as in `Plan.add`. Sequences of one group with equal `keys` have equal rows.
    `places` are what the caller counts them by.
    """

    __slots__ = (
        "alone",
        "claim",
        "costs",
        "ended",
        "ended_at",
        "error",
        "group",
        "keys",
        "num_missing",
        "on_end",
        "payloads",
        "places",
        "queued_at",
        "rows",
        "started_at",
    )

    def __init__(
        self,
        group: Hashable,
        payloads: Sequence[Any],
        costs: Sequence[int],
        alone: Sequence[int] | None = None,
        keys: Sequence[Hashable] | None = None,
        places: Sequence[int] | None = None,
    ) -> None:
        assert len(payloads) == len(costs)
        assert keys is None or len(keys) == len(payloads)
        self.group = group
        self.payloads = payloads
        self.costs = costs
        self.alone = alone
        self.keys = keys
        self.places = range(len(payloads)) if places is None else places
        self.rows: list[Any] = [None] * len(payloads)
        self.num_missing = len(payloads)
        self.on_end: Callable[[], None] = lambda: None
        self.claim: Claim | None = None
        self.error: Exception | None = None
        self.ended = False
        self.queued_at = self.started_at = self.ended_at = 0.0

    def has_row(self, index: int) -> bool:
        return self.rows[index] is not None

    def set_row(self, index: int, row: Any) -> None:
        self.rows[index] = row
        self.num_missing -= 1

    def end(self, error: Exception | None) -> None:
        """Called once, by the lane."""
        self.ended = True
        self.error = error
        self.ended_at = time.perf_counter()
        self.started_at = self.started_at or self.ended_at  # an equal gave all its rows
        self.on_end()
