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

    `alone` is as in `Plan.add`.
    """

    __slots__ = (
        "alone",
        "claim",
        "costs",
        "ended",
        "ended_at",
        "error",
        "group",
        "num_missing",
        "on_end",
        "payloads",
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
    ) -> None:
        assert len(payloads) == len(costs)
        self.group = group
        self.payloads = payloads
        self.costs = costs
        self.alone = alone
        self.rows: list[Any] = [None] * len(payloads)
        self.num_missing = len(payloads)
        self.on_end: Callable[[], None] = lambda: None
        self.claim: Claim | None = None
        self.error: Exception | None = None
        self.ended = False
        self.queued_at = self.started_at = self.ended_at = 0.0

    def set_row(self, index: int, row: Any) -> None:
        self.rows[index] = row
        self.num_missing -= 1

    def end(self, error: Exception | None) -> None:
        """Called once, by the lane."""
        self.ended = True
        self.error = error
        self.ended_at = time.perf_counter()
        self.on_end()
