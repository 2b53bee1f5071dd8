"""A batch that lacks memory runs again in halves; a bad row is its own sequence's failure."""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable, Iterator
from typing import Any

import pytest

from batcher.batches import BatchFailed, BatchRunner, Preempt, RowFailed
from batcher.jobs import Job
from batcher.worker import Worker, WorkerClosed

PATIENCE_S = 30.0


class Fallible:
    """Runs out of memory beyond `room` tokens; payloads may say what else happens."""

    def __init__(self, room: int = 10) -> None:
        self.room = room
        self.tries: list[list[Any]] = []
        self.num_freed = 0

    def run(self, group: Hashable, payloads: list[Any], preempt: Preempt | None) -> list[Any]:
        self.tries.append(payloads)
        if sum(len(payload) for payload in payloads) > self.room:
            raise MemoryError("no room")
        if "raise" in payloads:
            raise ValueError("secret")
        if "die" in payloads:
            raise SystemExit
        return [
            OverflowError("is not a number") if payload == "nan" else payload.upper()
            for payload in payloads
        ]

    def free(self) -> None:
        self.num_freed += 1


def members_of(*payloads: str) -> list[tuple[Job, int]]:
    job = Job("m", payloads, [len(payload) for payload in payloads])
    return [(job, index) for index in range(len(payloads))]


def runner(model: Fallible) -> BatchRunner:
    return BatchRunner(model.run, lambda error: isinstance(error, MemoryError), model.free)


def test_halves_run_until_they_fit_and_rows_keep_their_order() -> None:
    model = Fallible(room=2)
    assert runner(model).run("m", members_of(*"abcdefg"), None) == list("ABCDEFG")
    fitting = [payload for payloads in model.tries if len(payloads) <= 2 for payload in payloads]
    assert "".join(fitting) == "abcdefg"
    assert model.num_freed > 0


def test_one_too_large_alone_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    rows = runner(Fallible(room=3)).run("m", members_of("a", "toolarge", "c"), None)
    assert (rows[0], rows[2]) == ("A", "C")
    assert isinstance(rows[1], RowFailed)
    assert str(rows[1].of(1)) == "input 1: the model has not enough memory for it"


def test_any_other_error_fails_the_batch_and_is_logged_once_with_its_shapes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Fallible()
    with caplog.at_level(logging.ERROR, logger="embedding"):
        rows = runner(model).run("m", members_of("a", "raise"), None)
    assert len(model.tries) == 1
    assert all(type(row) is BatchFailed for row in rows)
    assert "secret" not in str(rows[0])
    (record,) = caplog.records
    assert record.getMessage() == "a batch of 2 sequences, tokens [1, 5], failed"
    assert record.exc_info is not None
    assert "secret" in str(record.exc_info[1])


def test_bad_rows_fail_alone_and_are_logged_once_with_their_shapes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = runner(Fallible()).run("m", members_of("a", "nan", "c", "nan"), None)
    assert (rows[0], rows[2]) == ("A", "C")
    for reservation in (1, 3):
        assert isinstance(rows[reservation], RowFailed)
        assert str(rows[reservation].of(7)) == "input 7: is not a number"
    (record,) = caplog.records
    assert record.getMessage() == (
        "2 of a batch's 4 sequences failed, tokens [3, 3]: is not a number"
    )


def test_the_failed_try_is_not_kept_alive_while_halves_run() -> None:
    """Its traceback would hold its tensors."""
    alive: list[int] = []

    class Big:
        count = 0

        def __init__(self) -> None:
            Big.count += 1

        def __del__(self) -> None:
            Big.count -= 1

    def run(group: Hashable, payloads: list[Any], preempt: Preempt | None) -> list[Any]:
        alive.append(Big.count)
        big = Big()
        if len(payloads) > 1:
            raise MemoryError
        del big
        return payloads

    BatchRunner(run, lambda error: True, lambda: None).run("m", members_of(*"abcd"), None)
    assert max(alive) == 0


@pytest.fixture
def model() -> Fallible:
    return Fallible()


@pytest.fixture
def worker(model: Fallible) -> Iterator[Worker]:
    worker = Worker(model.run, 100, free=model.free)
    yield worker
    worker.stop(PATIENCE_S)


class Waiting:
    def __init__(self, worker: Worker, *payloads: str) -> None:
        self.ended = threading.Event()
        self.job = Job("m", payloads, [len(payload) for payload in payloads])
        self.job.on_end = self.ended.set
        worker.submit(self.job)

    def result(self) -> list[Any] | Exception:
        assert self.ended.wait(PATIENCE_S)
        return self.job.error or self.job.rows


def test_a_job_with_a_bad_row_fails_and_its_neighbour_does_not(worker: Worker) -> None:
    bad, good = Waiting(worker, "a", "nan"), Waiting(worker, "b")
    assert isinstance(bad.result(), RowFailed)
    assert good.result() == ["B"]
    assert len(worker._jobs) == 0


def test_a_worker_splits_for_memory_and_counts_it(worker: Worker) -> None:
    assert Waiting(worker, "abcdef", "ghijkl").result() == ["ABCDEF", "GHIJKL"]
    assert worker.num_splits == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_worker_fails_its_jobs_and_a_revived_one_serves_again(worker: Worker) -> None:
    assert isinstance(Waiting(worker, "die").result(), WorkerClosed)
    worker._thread.join(PATIENCE_S)
    assert not worker.alive
    with pytest.raises(WorkerClosed, match="died"):
        Waiting(worker, "a")
    worker.revive()
    assert worker.alive
    assert Waiting(worker, "a").result() == ["A"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_stopped_worker_is_not_revived(worker: Worker) -> None:
    Waiting(worker, "die").result()
    worker._thread.join(PATIENCE_S)
    worker.stop(0.0)
    worker.revive()
    assert not worker.alive
