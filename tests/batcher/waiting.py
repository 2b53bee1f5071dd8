"""What waits in a scheduler, read from its queues."""

from __future__ import annotations

from typing import Any

from batcher.scheduler import Scheduler


def owners_of(scheduler: Scheduler) -> list[Any]:
    """The owners of all jobs that wait, in no order."""
    entries = [entry for queue in scheduler._queues.values() for entry in queue.bulk + queue.urgent]
    return [claim.owner for _, _, claim in entries if not claim.withdrawn]
