"""A long batch is preempted by a short job that has come meanwhile, and by little more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator

import pytest

from batcher.batches import BatchFailed, Preempt, UrgentShare
from batcher.jobs import Job
from batcher.worker import Worker, WorkerClosed

PATIENCE_S = 30.0
URGENT = 4
LONG = 100  # tokens of a bulk sequence


class Scripted:
    """Runs batches; at each preempt of a long one it calls what the test has put there."""

    def __init__(self) -> None:
        self.worker: Worker
        self.log: list[str] = []
        self.at_points: list[Callable[[], None]] = []
        self.can_preempt: list[bool] = []
        self.fails: set[str] = set()

    def run(self, group: Hashable, payloads: list[str], preempt: Preempt | None) -> list[str]:
        name = f"{group}:{','.join(payloads)}"
        self.log.append(f"begin {name}")
        self.can_preempt.append(preempt is not None)
        if preempt is not None:
            for at_point in self.at_points:
                at_point()
                preempt()
        if self.fails & set(payloads):
            raise RuntimeError("no")
        self.log.append(f"end {name}")
        return [payload.upper() for payload in payloads]


@pytest.fixture
def engine() -> Iterator[Scripted]:
    engine = Scripted()
    engine.worker = Worker(engine.run, 1000, max_urgent_tokens=URGENT)
    yield engine
    engine.worker.stop(PATIENCE_S)


class Waiting:
    """A job and its end."""

    def __init__(self, worker: Worker, group: str, *payloads: str, cost: int = 1) -> None:
        self.ended = threading.Event()
        self.job = Job(group, payloads, [cost] * len(payloads))
        self.job.on_end = self.ended.set
        worker.submit(self.job)

    def rows(self) -> list[str]:
        assert self.ended.wait(PATIENCE_S)
        assert self.job.error is None
        return self.job.rows


def test_a_short_job_runs_inside_a_long_batch(engine: Scripted) -> None:
    short: list[Waiting] = []
    engine.at_points = [lambda: short.append(Waiting(engine.worker, "m", "q"))]
    bulk = Waiting(engine.worker, "m", "b", cost=LONG)
    assert bulk.rows() == ["B"]
    assert short[0].rows() == ["Q"]
    assert engine.log == ["begin m:b", "begin m:q", "end m:q", "end m:b"]
    assert engine.worker.num_preemptions == 1


def test_another_models_job_does_too(engine: Scripted) -> None:
    short: list[Waiting] = []
    engine.at_points = [lambda: short.append(Waiting(engine.worker, "other", "q"))]
    bulk = Waiting(engine.worker, "m", "b", cost=LONG)
    bulk.rows()
    assert short[0].rows() == ["Q"]
    assert engine.log[1] == "begin other:q"


def keep(jobs: list[Waiting]) -> None:
    """They are looked at by the log alone."""


def test_a_nested_batch_is_not_preempted(engine: Scripted) -> None:
    engine.at_points = [lambda: keep(submit_all(engine.worker, 1))]
    Waiting(engine.worker, "m", "b", cost=LONG).rows()
    assert engine.can_preempt == [True, False]


def submit_all(worker: Worker, count: int, cost: int = 1) -> list[Waiting]:
    return [Waiting(worker, "m", f"q{i}", cost=cost) for i in range(count)]


def test_several_short_jobs_share_a_nested_batch_up_to_the_limit(engine: Scripted) -> None:
    engine.at_points = [lambda: keep(submit_all(engine.worker, 3, cost=2))]
    Waiting(engine.worker, "m", "b", cost=LONG).rows()
    assert engine.log[1] == "begin m:q0,q1"
    assert engine.worker.stop(PATIENCE_S)
    assert engine.log[-1] == "end m:q2"


def test_a_longer_job_waits_for_the_end_of_the_batch(engine: Scripted) -> None:
    late: list[Waiting] = []
    engine.at_points = [lambda: late.append(Waiting(engine.worker, "m", "x", cost=URGENT + 1))]
    Waiting(engine.worker, "m", "b", cost=LONG).rows()
    assert late[0].rows() == ["X"]
    assert engine.log == ["begin m:b", "end m:b", "begin m:x", "end m:x"]
    assert engine.worker.num_preemptions == 0


def test_the_last_texts_of_a_bulk_job_are_not_urgent(engine: Scripted) -> None:
    bulk: list[Waiting] = []
    engine.at_points = [lambda: bulk.append(Waiting(engine.worker, "m", *"abcdef"))]
    Waiting(engine.worker, "m", "b", cost=LONG).rows()
    assert bulk[0].rows() == list("ABCDEF")
    assert engine.worker.num_preemptions == 0


def test_a_short_batch_is_not_preempted(engine: Scripted) -> None:
    Waiting(engine.worker, "m", "a", cost=2 * URGENT).rows()
    assert engine.can_preempt == [False]


def test_without_an_urgent_limit_nothing_is_preempted() -> None:
    engine = Scripted()
    engine.worker = Worker(engine.run, 1000)
    Waiting(engine.worker, "m", "b", cost=LONG).rows()
    engine.worker.stop(PATIENCE_S)
    assert engine.can_preempt == [False]


def test_a_nested_batch_that_fails_leaves_the_long_one_alone(engine: Scripted) -> None:
    short: list[Waiting] = []
    engine.fails = {"q"}
    engine.at_points = [lambda: short.append(Waiting(engine.worker, "m", "q"))]
    assert Waiting(engine.worker, "m", "b", cost=LONG).rows() == ["B"]
    assert isinstance(short[0].job.error, BatchFailed)


def test_a_long_batch_that_fails_leaves_the_nested_one_alone(engine: Scripted) -> None:
    short: list[Waiting] = []
    engine.fails = {"b"}
    engine.at_points = [lambda: short.append(Waiting(engine.worker, "m", "q"))]
    bulk = Waiting(engine.worker, "m", "b", cost=LONG)
    assert bulk.ended.wait(PATIENCE_S)
    assert isinstance(bulk.job.error, BatchFailed)
    assert short[0].rows() == ["Q"]


def test_a_short_job_that_is_cancelled_does_not_run(engine: Scripted) -> None:
    def come_and_go() -> None:
        waiting = Waiting(engine.worker, "m", "q")
        engine.worker.cancel(waiting.job)

    engine.at_points = [come_and_go]
    Waiting(engine.worker, "m", "b", cost=LONG).rows()
    assert engine.log == ["begin m:b", "end m:b"]


def test_a_worker_that_stops_fails_both(engine: Scripted) -> None:
    at_point, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        Waiting(engine.worker, "m", "q")
        at_point.set()
        assert go_on.wait(PATIENCE_S)

    engine.at_points = [hold]
    bulk = Waiting(engine.worker, "m", "b", cost=LONG)
    assert at_point.wait(PATIENCE_S)
    engine.worker.stop(0.0)
    go_on.set()
    assert bulk.ended.wait(PATIENCE_S)
    assert isinstance(bulk.job.error, WorkerClosed)
    assert len(engine.worker._jobs) == 0


def test_the_share_is_two_fifths_and_a_quiet_time_saves_little() -> None:
    share = UrgentShare()
    assert share.may_begin
    share.spend(0.3)
    assert not share.may_begin
    share.earn(0.44)
    assert not share.may_begin
    share.earn(0.02)
    assert share.may_begin
    share.earn(1000)
    share.spend(1.0)
    assert share.may_begin
    share.spend(0.1)
    assert not share.may_begin


def test_a_batch_that_took_for_ever_is_forgiven_most_of_its_debt() -> None:
    share = UrgentShare()
    share.spend(1000)
    share.earn(15.1)
    assert share.may_begin


def test_urgent_work_that_has_spent_its_share_waits(engine: Scripted) -> None:
    share = UrgentShare()
    share.spend(1000)
    engine.worker._share = share
    engine.at_points = [lambda: keep(submit_all(engine.worker, 1))]
    Waiting(engine.worker, "m", "b", cost=LONG).rows()
    assert engine.log[:2] == ["begin m:b", "end m:b"]


def batches_behind_a_first(*coming: tuple[str, int]) -> list[list[str]]:
    """What runs when jobs of (payload, cost) have come while a first one ran."""
    gate, is_running = threading.Event(), threading.Event()
    batches: list[list[str]] = []

    def run(group: Hashable, payloads: list[str], preempt: Preempt | None) -> list[str]:
        batches.append(payloads)
        is_running.set()
        assert gate.wait(PATIENCE_S)
        return payloads

    worker = Worker(run, 1000, max_urgent_tokens=URGENT)
    jobs = [Waiting(worker, "m", "first")]
    assert is_running.wait(PATIENCE_S)
    jobs += [Waiting(worker, "m", payload, cost=cost) for payload, cost in coming]
    gate.set()
    for job in jobs:
        job.rows()
    worker.stop(PATIENCE_S)
    return batches


def test_short_jobs_alone_share_one_batch() -> None:
    """They are no reason to cut a batch of nothing but short jobs into small ones."""
    assert len(batches_behind_a_first(*((f"q{i}", 1) for i in range(2 * URGENT)))) == 2


def test_short_jobs_go_before_a_long_batch_and_not_into_it() -> None:
    assert batches_behind_a_first(("bulk", LONG), ("q", 1)) == [["first"], ["q"], ["bulk"]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_workers_own_at_a_preemption_point_fails_all_and_loses_nobody(
    engine: Scripted,
) -> None:
    short: list[Waiting] = []

    def come() -> None:
        short.append(Waiting(engine.worker, "m", "q"))
        engine.worker._on_batch = lambda batch, seconds, is_done: 1 / 0  # type: ignore[assignment]

    engine.at_points = [come]
    bulk = Waiting(engine.worker, "m", "b", cost=LONG)
    assert bulk.ended.wait(PATIENCE_S)
    assert isinstance(bulk.job.error, WorkerClosed)
    assert short[0].rows() == ["Q"]  # its batch was done
    engine.worker._thread.join(PATIENCE_S)
    assert not engine.worker.alive


def test_a_nested_batch_without_memory_runs_again_in_halves() -> None:
    def run(group: Hashable, payloads: list[str], preempt: Preempt | None) -> list[str]:
        if preempt is not None:
            submit_all(worker, 2)
            preempt()
        elif len(payloads) > 1:
            raise MemoryError
        return payloads

    worker = Worker(run, 1000, max_urgent_tokens=URGENT)
    Waiting(worker, "m", "b", cost=LONG).rows()
    worker.stop(PATIENCE_S)
    assert worker.num_splits == worker.num_preemptions == 1


def test_an_urgent_batch_is_no_larger_than_batches_may_be() -> None:
    sizes: list[int] = []

    def run(group: Hashable, payloads: list[str], preempt: Preempt | None) -> list[str]:
        sizes.append(len(payloads))
        return payloads

    worker = Worker(run, 6, max_urgent_tokens=64)
    with worker._changed:  # so that all of it waits at once
        bulk = Waiting(worker, "m", *"abcdefgh", cost=5)
        short = submit_all(worker, 9, cost=1)
    bulk.rows()
    for one in short:
        one.rows()
    worker.stop(PATIENCE_S)
    assert 1 < max(sizes) <= 6
