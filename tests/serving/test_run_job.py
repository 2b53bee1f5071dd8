"""`run_job` on real loops: it returns, raises, and withdraws what nobody waits for any more."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Hashable, Iterator

import pytest

from batcher.batches import BatchFailed, Preempt
from batcher.jobs import Job
from batcher.worker import Worker, WorkerClosed
from serving.rows import run_job

PATIENCE_S = 20.0  # reached only by a test that fails


class Engine:
    """Upper-cases its payloads; while `gate` is closed its batches are held."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def run(self, group: Hashable, payloads: list[str], preempt: Preempt | None) -> list[str]:
        self.started.put(payloads)
        assert self.gate.wait(PATIENCE_S)
        if "bad" in payloads:
            raise ValueError("bad payload")
        return [payload.upper() for payload in payloads]

    async def next_batch(self) -> list[str]:
        """What the running batch computes; the loop goes on meanwhile."""
        return await asyncio.to_thread(self.started.get, timeout=PATIENCE_S)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def worker(engine: Engine) -> Iterator[Worker]:
    """Batches of two sequences."""
    worker = Worker(engine.run, 2)
    yield worker
    engine.gate.set()
    worker.stop(PATIENCE_S)


def job_of(*payloads: str) -> Job:
    return Job("", payloads, [1] * len(payloads))


def check_works(worker: Worker) -> None:
    job = job_of("again")
    asyncio.run(run_job(worker, job))
    assert job.rows == ["AGAIN"]


def test_a_job_is_done_when_run_job_returns(worker: Worker) -> None:
    job = job_of("a", "b", "c")
    asyncio.run(run_job(worker, job))
    assert job.ended
    assert job.rows == ["A", "B", "C"]


def test_jobs_of_one_loop_end_each_on_their_own(worker: Worker) -> None:
    jobs = [job_of(f"a{i}", f"b{i}", f"c{i}") for i in range(20)]

    async def main() -> None:
        await asyncio.gather(*(run_job(worker, job) for job in jobs))

    asyncio.run(main())
    assert [job.rows for job in jobs] == [[f"A{i}", f"B{i}", f"C{i}"] for i in range(20)]


def test_the_error_of_a_batch_is_raised(worker: Worker) -> None:
    with pytest.raises(BatchFailed) as failure:
        asyncio.run(run_job(worker, job_of("bad")))
    assert isinstance(failure.value.__cause__, ValueError)
    check_works(worker)


def test_a_closed_worker_raises_at_once(worker: Worker) -> None:
    worker.close("the server is shutting down")
    with pytest.raises(WorkerClosed, match="shutting down"):
        asyncio.run(run_job(worker, job_of("a")))


def test_a_worker_that_stops_fails_the_waiting_caller(worker: Worker, engine: Engine) -> None:
    engine.gate.clear()

    async def main() -> None:
        task = asyncio.create_task(run_job(worker, job_of("a", "b", "c")))
        await engine.next_batch()
        stopping = asyncio.create_task(asyncio.to_thread(worker.stop, 0.0))
        with pytest.raises(WorkerClosed):
            await task
        engine.gate.set()
        await stopping

    asyncio.run(main())


@pytest.mark.parametrize("is_running", [False, True], ids=["waiting", "running"])
def test_cancelling_the_caller_withdraws_its_job(
    worker: Worker, engine: Engine, is_running: bool
) -> None:
    engine.gate.clear()
    cancelled, neighbour = job_of("a", "b", "c", "d"), job_of("n")

    async def main() -> None:
        tasks = [asyncio.create_task(run_job(worker, cancelled if is_running else job_of("first")))]
        await engine.next_batch()
        if not is_running:
            tasks.append(asyncio.create_task(run_job(worker, cancelled)))
        other = asyncio.create_task(run_job(worker, neighbour))
        await asyncio.sleep(0)  # both have submitted
        tasks[-1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[-1]
        assert cancelled.ended
        assert (worker.num_waiting_jobs, worker.num_waiting_tokens) == (1, 1)
        engine.gate.set()
        await asyncio.gather(other, *tasks[:-1])

    asyncio.run(main())
    assert neighbour.rows == ["N"]
    assert cancelled.rows[2:] == [None, None], "the rest never ran"


def test_a_caller_cancelled_as_its_job_ends_is_cancelled(worker: Worker, engine: Engine) -> None:
    faults: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        engine.gate.clear()
        task = asyncio.create_task(run_job(worker, job_of("a")))
        await engine.next_batch()
        engine.gate.set()
        worker.stop(
            PATIENCE_S
        )  # blocks the loop on purpose: the job's end is only on its way to it
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert faults == []


def test_a_loop_closed_while_its_job_runs_is_no_error_for_the_worker(
    worker: Worker, engine: Engine
) -> None:
    engine.gate.clear()
    abandoned = job_of("a", "b", "c")
    loop = asyncio.new_event_loop()
    caller = run_job(worker, abandoned)
    caller_task = loop.create_task(caller)
    loop.run_until_complete(engine.next_batch())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    engine.gate.set()
    check_works(worker)
    assert abandoned.ended
    assert worker.alive
    caller.close()
    del caller_task
