"""`run_job` on real loops: it returns, raises, and withdraws what nobody waits for any more."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Hashable, Iterator

import pytest

from batcher.futures import run_job
from batcher.job import Job
from batcher.lane import Lane, LaneClosed
from batcher.steps import Pause, StepFailed

PATIENCE_S = 20.0  # reached only by a test that fails


class Engine:
    """Upper-cases its payloads; while `gate` is closed its steps are held."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def run(self, group: Hashable, payloads: list[str], pause: Pause | None) -> list[str]:
        self.started.put(payloads)
        assert self.gate.wait(PATIENCE_S)
        if "bad" in payloads:
            raise ValueError("bad payload")
        return [payload.upper() for payload in payloads]

    async def next_step(self) -> list[str]:
        """What the running step computes; the loop goes on meanwhile."""
        return await asyncio.to_thread(self.started.get, timeout=PATIENCE_S)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def lane(engine: Engine) -> Iterator[Lane]:
    """Steps of two sequences."""
    lane = Lane(engine.run, 2)
    yield lane
    engine.gate.set()
    lane.stop(PATIENCE_S)


def job_of(*payloads: str) -> Job:
    return Job("", payloads, [1] * len(payloads))


def check_works(lane: Lane) -> None:
    job = job_of("again")
    asyncio.run(run_job(lane, job))
    assert job.rows == ["AGAIN"]


def test_a_job_is_done_when_run_job_returns(lane: Lane) -> None:
    job = job_of("a", "b", "c")
    asyncio.run(run_job(lane, job))
    assert job.ended
    assert job.rows == ["A", "B", "C"]


def test_jobs_of_one_loop_end_each_on_their_own(lane: Lane) -> None:
    jobs = [job_of(f"a{i}", f"b{i}", f"c{i}") for i in range(20)]

    async def main() -> None:
        await asyncio.gather(*(run_job(lane, job) for job in jobs))

    asyncio.run(main())
    assert [job.rows for job in jobs] == [[f"A{i}", f"B{i}", f"C{i}"] for i in range(20)]


def test_the_error_of_a_step_is_raised(lane: Lane) -> None:
    with pytest.raises(StepFailed) as failure:
        asyncio.run(run_job(lane, job_of("bad")))
    assert isinstance(failure.value.__cause__, ValueError)
    check_works(lane)


def test_a_closed_lane_raises_at_once(lane: Lane) -> None:
    lane.close("the server is shutting down")
    with pytest.raises(LaneClosed, match="shutting down"):
        asyncio.run(run_job(lane, job_of("a")))


def test_a_lane_that_stops_fails_the_waiting_caller(lane: Lane, engine: Engine) -> None:
    engine.gate.clear()

    async def main() -> None:
        task = asyncio.create_task(run_job(lane, job_of("a", "b", "c")))
        await engine.next_step()
        stopping = asyncio.create_task(asyncio.to_thread(lane.stop, 0.0))
        with pytest.raises(LaneClosed):
            await task
        engine.gate.set()
        await stopping

    asyncio.run(main())


@pytest.mark.parametrize("is_running", [False, True], ids=["waiting", "running"])
def test_cancelling_the_caller_withdraws_its_job(
    lane: Lane, engine: Engine, is_running: bool
) -> None:
    engine.gate.clear()
    cancelled, neighbour = job_of("a", "b", "c", "d"), job_of("n")

    async def main() -> None:
        tasks = [asyncio.create_task(run_job(lane, cancelled if is_running else job_of("first")))]
        await engine.next_step()
        if not is_running:
            tasks.append(asyncio.create_task(run_job(lane, cancelled)))
        other = asyncio.create_task(run_job(lane, neighbour))
        await asyncio.sleep(0)  # both have submitted
        tasks[-1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[-1]
        assert cancelled.ended
        assert (lane.num_waiting_jobs, lane.num_waiting_tokens) == (1, 1)
        engine.gate.set()
        await asyncio.gather(other, *tasks[:-1])

    asyncio.run(main())
    assert neighbour.rows == ["N"]
    assert cancelled.rows[2:] == [None, None], "the rest never ran"


def test_a_caller_cancelled_as_its_job_ends_is_cancelled(lane: Lane, engine: Engine) -> None:
    faults: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        engine.gate.clear()
        task = asyncio.create_task(run_job(lane, job_of("a")))
        await engine.next_step()
        engine.gate.set()
        lane.stop(PATIENCE_S)  # blocks the loop on purpose: the job's end is only on its way to it
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert faults == []


def test_a_loop_closed_while_its_job_runs_is_no_error_for_the_lane(
    lane: Lane, engine: Engine
) -> None:
    engine.gate.clear()
    abandoned = job_of("a", "b", "c")
    loop = asyncio.new_event_loop()
    caller = run_job(lane, abandoned)
    caller_task = loop.create_task(caller)
    loop.run_until_complete(engine.next_step())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    engine.gate.set()
    check_works(lane)
    assert abandoned.ended
    assert lane.alive
    caller.close()
    del caller_task
