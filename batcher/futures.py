"""Where a lane's threads meet the event loop: the one file of the batcher that knows asyncio.

A job ends on the lane's thread; the caller waits on its loop. Either may be gone first: a caller
that is cancelled withdraws its job, and a loop that is closed is no error for the lane.
"""

from __future__ import annotations

import asyncio
import contextlib

from batcher.job import Job
from batcher.lane import Lane


async def run_job(lane: Lane, job: Job) -> None:
    """Submit and wait. Raises the job's error; cancelling the awaiting task cancels the job."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def resolve() -> None:
        if not ended.done():
            ended.set_result(None)

    def on_end() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody is waiting any more
            loop.call_soon_threadsafe(resolve)

    job.on_end = on_end
    lane.submit(job)
    try:
        await ended
    except asyncio.CancelledError:
        lane.cancel(job)
        raise
    if job.error is not None:
        raise job.error
