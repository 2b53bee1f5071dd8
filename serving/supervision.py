"""A compute thread that has died gets a successor, a few times; /health says 503 meanwhile.

Must not know models or HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from batcher.lane import Lane

log = logging.getLogger("embedding")

MAX_RESTARTS = 3
WINDOW_S = 600.0  # restarts are counted over so long; more of them mean that it is no accident
PAUSE_S = 1.0  # between a death and its successor: time for whoever watches /health
_POLL_S = 0.25


async def supervise(lane: Lane, pause_s: float = PAUSE_S, window_s: float = WINDOW_S) -> None:
    """For ever, until cancelled, or until the thread has died too often or was stopped."""
    deaths: deque[float] = deque()
    while not lane.is_stopping:
        await asyncio.sleep(_POLL_S)
        if lane.alive or lane.is_stopping:
            continue
        now = time.monotonic()
        while deaths and now - deaths[0] > window_s:
            deaths.popleft()
        if len(deaths) == MAX_RESTARTS:
            log.error("the compute thread died %d times: it stays dead", MAX_RESTARTS + 1)
            return
        deaths.append(now)
        await asyncio.sleep(pause_s)
        log.warning("the compute thread starts again (%d of %d)", len(deaths), MAX_RESTARTS)
        try:
            lane.revive()
        except RuntimeError:  # the system has no thread left; it counts as a death
            log.exception("the compute thread did not start")
