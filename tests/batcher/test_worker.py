"""Workers with a fake engine: every batch is held until the test releases it with its outcome."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from batcher.batches import BatchFailed, Preempt
from batcher.jobs import Job
from batcher.scheduler import Batch
from batcher.worker import Worker, WorkerClosed

PATIENCE_S = 20.0  # reached only by a test that fails

dies = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class HeldBatch:
    """A batch that runs until `release`. By default it gives the row `row of <payload>`."""

    def __init__(self, payloads: list[str]) -> None:
        self.payloads = payloads
        self._outcome: Any = None
        self._released = threading.Event()

    def release(self, outcome: Any = None) -> None:
        """`outcome`: an exception to raise, or what to return instead of the right rows."""
        self._outcome = outcome
        self._released.set()

    def result(self) -> Sequence[str]:
        assert self._released.wait(PATIENCE_S)
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        if self._outcome is not None:
            return self._outcome  # type: ignore[no-any-return]
        return [row_of(payload) for payload in self.payloads]


class HeldWorker(Worker):
    """A worker that shows each batch to the test."""

    def __init__(self, max_batch_tokens: int) -> None:
        self._shown: queue.SimpleQueue[HeldBatch | None] = queue.SimpleQueue()
        self._freed = threading.Event()
        super().__init__(self._hold, max_batch_tokens)

    def _hold(self, group: Hashable, payloads: list[str], preempt: Preempt | None) -> Sequence[str]:
        batch = HeldBatch(payloads)
        self._shown.put(batch)
        if self._freed.is_set():
            batch.release()
        return batch.result()

    def next_batch(self) -> HeldBatch:
        """The batch that runs now; waits for it to start."""
        while (batch := self._shown.get(timeout=PATIENCE_S)) is None:
            pass
        return batch

    def next_batch_while(self, some_job_is_open: Callable[[], bool]) -> HeldBatch | None:
        """The batch that runs now or comes next; None when all jobs end without one."""
        while some_job_is_open():
            if batch := self._shown.get(timeout=PATIENCE_S):
                return batch
        return None

    def look_again(self) -> None:
        """For `next_batch_while`: some job has ended."""
        self._shown.put(None)

    def free(self) -> None:
        """Hold no more."""
        self._freed.set()
        while not self._shown.empty():
            if batch := self._shown.get():
                batch.release()


class Watched:
    """A job named `a` with the payloads a0, a1, … of one token each, whose ends are counted."""

    def __init__(self, name: str, num_sequences: int, group: str = "") -> None:
        self.payloads = [f"{name}{index}" for index in range(num_sequences)]
        self.job = Job(group, self.payloads, [1] * num_sequences)
        self.job.on_end = self._on_end
        self.num_ends = 0
        self.tell: Callable[[], None] = lambda: None
        self._ended = threading.Event()

    def _on_end(self) -> None:
        self.num_ends += 1
        self._ended.set()
        self.tell()

    def wait(self) -> None:
        assert self._ended.wait(PATIENCE_S)

    def check_rows(self) -> None:
        """It ended once, well, with its own rows in order."""
        self.wait()
        assert (self.num_ends, self.job.error) == (1, None)
        assert self.job.rows == [row_of(payload) for payload in self.payloads]

    def check_failed(self, error: type[Exception]) -> None:
        self.wait()
        assert self.num_ends == 1
        assert isinstance(self.job.error, error)


def row_of(payload: str) -> str:
    return f"row of {payload}"


def check_ended(worker: Worker) -> None:
    worker._thread.join(PATIENCE_S)
    assert not worker.alive


def submit(worker: Worker, name: str, num_sequences: int, group: str = "") -> Watched:
    watched = Watched(name, num_sequences, group)
    worker.submit(watched.job)
    return watched


def busy(worker: HeldWorker) -> HeldBatch:
    """The running batch of a job of its own, so that what is submitted next waits."""
    submit(worker, "busy", 1, group="busy")
    return worker.next_batch()


@pytest.fixture
def worker() -> Iterator[HeldWorker]:
    """Batches of at most four sequences."""
    worker = HeldWorker(4)
    yield worker
    worker.free()
    worker.stop(PATIENCE_S)
    check_ended(worker)


def test_rows_reach_their_own_jobs_in_order(worker: HeldWorker) -> None:
    first = busy(worker)
    jobs = [submit(worker, "a", 5), submit(worker, "b", 1), submit(worker, "c", 3, group="other")]
    assert (worker.num_waiting_jobs, worker.num_waiting_tokens, len(worker._jobs)) == (3, 9, 4)
    first.release()
    worker.free()
    for job in jobs:
        job.check_rows()
    assert (worker.num_waiting_jobs, worker.num_waiting_tokens) == (0, 0)


def test_a_batch_is_whatever_waits_when_the_worker_is_free(worker: HeldWorker) -> None:
    first = busy(worker)
    submit(worker, "a", 3)
    submit(worker, "b", 3)
    first.release()
    batch = worker.next_batch()
    assert batch.payloads == ["a0", "b0", "a1", "b1"]
    batch.release()


def test_no_batch_has_more_tokens_than_the_limit() -> None:
    sizes: list[int] = []

    def on_batch(batch: Batch, seconds: float, is_done: bool) -> None:
        sizes.append(batch.num_tokens)

    worker = Worker(lambda group, payloads, preempt: payloads, 64, on_batch=on_batch)
    job = Job("m", range(1, 401), [16] * 400)
    ended = threading.Event()
    job.on_end = ended.set
    worker.submit(job)
    assert ended.wait(PATIENCE_S)
    worker.stop(PATIENCE_S)
    assert job.rows == list(range(1, 401))
    assert set(sizes) == {64}


def test_the_times_of_a_job_are_in_order(worker: HeldWorker) -> None:
    job = submit(worker, "a", 9)
    worker.free()
    job.check_rows()
    assert 0 < job.job.queued_at <= job.job.started_at <= job.job.ended_at


def test_a_failing_batch_fails_only_its_own_jobs(worker: HeldWorker) -> None:
    first = busy(worker)
    jobs = [submit(worker, "a", 2), submit(worker, "b", 2), submit(worker, "c", 2, group="other")]
    first.release()
    cause = RuntimeError("out of memory")
    worker.next_batch().release(cause)
    for failed in jobs[:2]:
        failed.check_failed(BatchFailed)
        assert failed.job.error is not None
        assert failed.job.error.__cause__ is cause
        assert "memory" not in str(failed.job.error), "the cause is for the log only"
    worker.next_batch().release()
    jobs[2].check_rows()
    assert worker.alive


def test_the_rest_of_a_failed_job_never_runs(worker: HeldWorker) -> None:
    failed = submit(worker, "a", 9)
    worker.next_batch().release(ValueError())
    failed.check_failed(BatchFailed)
    assert (worker.num_waiting_jobs, worker.num_waiting_tokens, len(worker._jobs)) == (0, 0, 0)
    after = submit(worker, "b", 1)
    batch = worker.next_batch()
    assert batch.payloads == ["b0"]
    batch.release()
    after.check_rows()


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([], id="none"),
        pytest.param(["row"], id="too few"),
        pytest.param(["row"] * 3, id="too many"),
        pytest.param(7, id="no rows at all"),
    ],
)
def test_a_wrong_number_of_rows_fails_the_batch_and_not_the_worker(
    worker: HeldWorker, rows: Any
) -> None:
    wrong = submit(worker, "a", 2)
    worker.next_batch().release(rows)
    wrong.check_failed(BatchFailed)
    after = submit(worker, "b", 2)
    worker.next_batch().release()
    after.check_rows()


@dies
@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_dead_worker_fails_its_jobs_and_takes_no_more(error: BaseException) -> None:
    worker = HeldWorker(4)
    running = submit(worker, "a", 9)
    batch = worker.next_batch()
    waiting = submit(worker, "b", 1)
    batch.release(error)
    running.check_failed(WorkerClosed)
    waiting.check_failed(WorkerClosed)
    assert "died" in str(waiting.job.error)
    with pytest.raises(WorkerClosed, match="died"):
        submit(worker, "c", 1)
    check_ended(worker)
    assert len(worker._jobs) == 0


@dies
def test_a_worker_that_cannot_start_fails_the_jobs_it_has() -> None:
    submitted = threading.Event()

    def on_start() -> None:
        assert submitted.wait(PATIENCE_S)
        raise OSError("no device")

    worker = Worker(lambda group, payloads, preempt: payloads, 4, on_start=on_start)
    waiting = submit(worker, "a", 1)
    submitted.set()
    waiting.check_failed(WorkerClosed)
    check_ended(worker)


def test_a_cancelled_waiting_job_never_runs(worker: HeldWorker) -> None:
    first = busy(worker)
    cancelled, neighbour = submit(worker, "a", 2), submit(worker, "b", 2)
    worker.cancel(cancelled.job)
    worker.cancel(cancelled.job)
    assert (cancelled.num_ends, cancelled.job.error) == (1, None)
    assert (worker.num_waiting_jobs, worker.num_waiting_tokens) == (1, 2)
    first.release()
    batch = worker.next_batch()
    assert batch.payloads == ["b0", "b1"]
    batch.release()
    neighbour.check_rows()


def test_a_cancelled_member_leaves_the_batch_intact(worker: HeldWorker) -> None:
    first = busy(worker)
    cancelled, neighbour = submit(worker, "a", 2), submit(worker, "b", 2)
    first.release()
    batch = worker.next_batch()
    assert batch.payloads == ["a0", "b0", "a1", "b1"]
    worker.cancel(cancelled.job)
    assert cancelled.num_ends == 1
    batch.release()
    neighbour.check_rows()
    assert cancelled.num_ends == 1


def test_the_rest_of_a_cancelled_job_never_runs(worker: HeldWorker) -> None:
    cancelled = submit(worker, "a", 12)
    worker.next_batch().release()
    batch = worker.next_batch()
    neighbour = submit(worker, "b", 1)
    worker.cancel(cancelled.job)
    assert (worker.num_waiting_jobs, worker.num_waiting_tokens) == (1, 1)
    batch.release()
    batch = worker.next_batch()
    assert batch.payloads == ["b0"]
    batch.release()
    neighbour.check_rows()
    assert cancelled.num_ends == 1


def test_a_cancelled_member_of_a_failing_batch_ends_once(worker: HeldWorker) -> None:
    cancelled = submit(worker, "a", 2)
    batch = worker.next_batch()
    worker.cancel(cancelled.job)
    batch.release(ValueError())
    after = submit(worker, "b", 1)
    worker.next_batch().release()
    after.check_rows()
    assert (cancelled.num_ends, cancelled.job.error) == (1, None)


def test_cancelling_a_finished_job_does_nothing(worker: HeldWorker) -> None:
    job = submit(worker, "a", 1)
    worker.next_batch().release()
    job.check_rows()
    worker.cancel(job.job)
    job.check_rows()


def test_a_closed_worker_finishes_what_it_has_accepted(worker: HeldWorker) -> None:
    first = busy(worker)
    accepted = submit(worker, "a", 9)
    worker.close("the model is replaced")
    worker.close("a later reason")
    with pytest.raises(WorkerClosed, match="the model is replaced"):
        submit(worker, "b", 1)
    first.release()
    worker.free()
    accepted.check_rows()


def test_stop_drains(worker: HeldWorker) -> None:
    first = busy(worker)
    accepted = submit(worker, "a", 9)
    results: queue.SimpleQueue[bool] = queue.SimpleQueue()
    stopper = threading.Thread(target=lambda: results.put(worker.stop(PATIENCE_S)))
    stopper.start()
    first.release()
    worker.free()
    assert results.get(timeout=PATIENCE_S)
    stopper.join()
    accepted.check_rows()
    assert not worker.alive


def test_stop_without_time_fails_the_rest(worker: HeldWorker) -> None:
    running = submit(worker, "a", 5)
    batch = worker.next_batch()
    waiting = submit(worker, "b", 1)
    stopper = threading.Thread(target=worker.stop, args=(0.0, "the server goes"))
    stopper.start()
    for job in (running, waiting):
        job.check_failed(WorkerClosed)
        assert str(job.job.error) == "the server goes"
    batch.release()
    stopper.join()
    check_ended(worker)
    assert (running.num_ends, waiting.num_ends) == (1, 1), "late rows end nothing again"
    with pytest.raises(WorkerClosed, match="the server goes"):
        submit(worker, "c", 1)


def test_an_idle_worker_stops_at_once(worker: HeldWorker) -> None:
    assert worker.stop(0)
    assert not worker.alive


Operation = tuple[str, int]
OPERATIONS = strategies.lists(
    strategies.tuples(
        strategies.sampled_from(["submit", "submit", "cancel", "release", "fail", "garble"]),
        strategies.integers(1, 7),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(operations=OPERATIONS, drain=strategies.booleans())
def test_every_job_ends_exactly_once(operations: list[Operation], drain: bool) -> None:
    worker = HeldWorker(4)
    jobs: list[Watched] = []
    cancelled: set[Watched] = set()
    for name, number in operations:
        if name == "submit":
            jobs.append(Watched(f"j{len(jobs)}.", number, group=str(number % 2)))
            jobs[-1].tell = worker.look_again
            worker.submit(jobs[-1].job)
        elif name == "cancel" and jobs:
            cancelled.add(jobs[number % len(jobs)])
            worker.cancel(jobs[number % len(jobs)].job)
        elif batch := worker.next_batch_while(lambda: not all(job.num_ends for job in jobs)):
            outcomes = {"fail": ValueError(), "garble": [""] * 9}
            batch.release(outcomes.get(name))
    if drain:
        worker.free()
    stopper = threading.Thread(target=worker.stop, args=(PATIENCE_S if drain else 0.0,))
    stopper.start()
    for job in jobs:
        job.wait()
    worker.free()
    stopper.join()
    check_ended(worker)
    for job in jobs:
        assert job.num_ends == 1
        if job.job.error is None and job not in cancelled:
            job.check_rows()
        assert not (drain and isinstance(job.job.error, WorkerClosed))
    assert (len(worker._jobs), worker.num_waiting_jobs, worker.num_waiting_tokens) == (0, 0, 0)
