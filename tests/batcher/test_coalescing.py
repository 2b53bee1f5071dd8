"""Identical sequences are computed once, and nobody waits longer for it, or fails for another."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.batches import BatchFailed, Member, Preempt
from batcher.jobs import Coalescer, Job
from batcher.worker import Worker

PATIENCE_S = 30.0


class Gate:
    """Runs batches one at a time, each when the test lets it."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.began, self.may_end = threading.Semaphore(0), threading.Semaphore(0)
        self.fails = False

    def run(self, group: Hashable, payloads: list[str], preempt: Preempt | None) -> list[str]:
        self.batches.append(payloads)
        self.began.release()
        assert self.may_end.acquire(timeout=PATIENCE_S)
        if self.fails:
            raise RuntimeError("no")
        return [payload.upper() for payload in payloads]

    def next(self) -> None:
        assert self.began.acquire(timeout=PATIENCE_S)

    def end(self) -> None:
        self.may_end.release()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def worker(gate: Gate) -> Iterator[Worker]:
    """Batches of two sequences of cost 1."""
    worker = Worker(gate.run, 2)
    yield worker
    for _ in range(100):
        gate.end()
    assert worker.stop(PATIENCE_S)


class Waiting:
    def __init__(self, worker: Worker, *payloads: str, group: str = "m") -> None:
        self.ended = threading.Event()
        self.job = Job(group, payloads, [1] * len(payloads), keys=payloads)
        self.job.on_end = self.ended.set
        worker.submit(self.job)

    def rows(self) -> list[Any]:
        assert self.ended.wait(PATIENCE_S)
        assert self.job.error is None
        return self.job.rows


def test_equals_within_a_job_are_computed_once(worker: Worker, gate: Gate) -> None:
    job = Waiting(worker, "a", "a", "b", "a")
    for _ in range(2):
        gate.end()
    assert job.rows() == ["A", "A", "B", "A"]
    assert sorted(payload for batch in gate.batches for payload in batch) == ["a", "b"]
    assert worker.num_shared == 2


def test_one_that_waits_gets_the_row_of_one_that_runs(worker: Worker, gate: Gate) -> None:
    first = Waiting(worker, "a")
    gate.next()
    second = Waiting(worker, "a")
    gate.end()
    assert first.rows() == second.rows() == ["A"]
    assert gate.batches == [["a"]]
    for job in (first.job, second.job):
        assert job.queued_at <= job.started_at <= job.ended_at


def test_a_query_does_not_wait_for_its_equal_at_the_end_of_a_bulk_job(
    worker: Worker, gate: Gate
) -> None:
    bulk = Waiting(worker, *"abcdefgh")
    gate.next()
    query = Waiting(worker, "h")
    gate.end()
    gate.next()
    gate.end()
    assert query.rows() == ["H"]
    assert not bulk.ended.is_set()
    for _ in range(3):
        gate.end()
    assert bulk.rows() == list("ABCDEFGH")
    assert sum(batch.count("h") for batch in gate.batches) == 1


def test_models_do_not_share(worker: Worker, gate: Gate) -> None:
    jobs = [Waiting(worker, "a", group="m"), Waiting(worker, "a", group="n")]
    gate.end()
    gate.end()
    assert [job.rows() for job in jobs] == [["A"], ["A"]]
    assert gate.batches == [["a"], ["a"]]


def test_a_cancelled_runner_still_serves_who_waits(worker: Worker, gate: Gate) -> None:
    first = Waiting(worker, "a")
    gate.next()
    second = Waiting(worker, "a")
    worker.cancel(first.job)
    gate.end()
    assert second.rows() == ["A"]
    assert gate.batches == [["a"]]


def test_a_cancelled_waiter_leaves_its_equal_alone(worker: Worker, gate: Gate) -> None:
    busy = Waiting(worker, "x", "y")
    gate.next()
    first, second = Waiting(worker, "a"), Waiting(worker, "a")
    worker.cancel(first.job)
    gate.end()
    gate.end()
    assert busy.rows() == ["X", "Y"]
    assert second.rows() == ["A"]


def test_a_failure_reaches_who_rode_along_and_nobody_else(worker: Worker, gate: Gate) -> None:
    busy = Waiting(worker, "x", "y")
    gate.next()
    together = [Waiting(worker, "a"), Waiting(worker, "a")]
    later = Waiting(worker, "a")
    gate.end()
    assert busy.rows() == ["X", "Y"]
    gate.next()
    gate.fails = True
    gate.end()
    for job in together:
        assert job.ended.wait(PATIENCE_S)
        assert isinstance(job.job.error, BatchFailed)
    gate.next()
    gate.fails = False
    gate.end()
    assert later.rows() == ["A"]


def test_who_rode_along_is_told_its_own_place_in_its_own_request() -> None:
    began, may_end = threading.Event(), threading.Event()

    def run(group: Hashable, payloads: list[str], preempt: Preempt | None) -> list[Any]:
        began.set()
        assert may_end.wait(PATIENCE_S)
        return [ValueError("bad") if payload == "c" else payload for payload in payloads]

    worker = Worker(run, 10)
    busy = Waiting(worker, "x")
    assert began.wait(PATIENCE_S)
    bulk, rider = Waiting(worker, *"abc"), Waiting(worker, "c")
    may_end.set()
    assert busy.rows() == ["x"]
    for job, text in ((bulk, "input 2: bad"), (rider, "input 0: bad")):
        assert job.ended.wait(PATIENCE_S)
        assert str(job.job.error) == text
    assert worker.stop(PATIENCE_S)


@pytest.mark.parametrize("outer_fails", [False, True])
@pytest.mark.parametrize("nested_fails", [False, True])
def test_a_query_whose_equal_runs_in_a_long_batch_neither_waits_for_it_nor_fails_with_it(
    outer_fails: bool, nested_fails: bool
) -> None:
    workers: list[Worker] = []
    queries: list[Waiting] = []

    def run(group: Hashable, payloads: list[str], preempt: Preempt | None) -> list[str]:
        if preempt is None:
            if nested_fails:
                raise RuntimeError("no")
            return [payload.upper() for payload in payloads]
        queries.append(Waiting(workers[0], "c"))
        preempt()
        assert queries[0].ended.is_set()
        if outer_fails:
            raise RuntimeError("no")
        return [payload.upper() for payload in payloads]

    worker = Worker(run, 10, max_urgent_tokens=1)
    workers.append(worker)
    bulk = Waiting(worker, *"abcde")
    assert bulk.ended.wait(PATIENCE_S)
    assert worker.stop(PATIENCE_S)
    assert worker.num_preemptions == 1
    assert (bulk.job.error is not None) == outer_fails
    assert (queries[0].job.error is not None) == nested_fails
    if not outer_fails:
        assert bulk.job.rows == list("ABCDE")
    if not nested_fails:
        assert queries[0].job.rows == ["C"]
    assert worker.num_shared == 0, "each was computed"
    assert len(worker._jobs._coalescer) == 0


SCRIPT = st.lists(
    st.tuples(
        st.sampled_from(["add", "batch", "fail", "nest", "cancel"]),
        st.lists(st.sampled_from("abc"), min_size=1, max_size=4),
    ),
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(SCRIPT)
def test_any_schedule_leaves_nothing_behind_and_mixes_nothing_up(
    script: list[tuple[str, list[str]]],
) -> None:
    coalescer = Coalescer()
    jobs: list[Job] = []

    def end(job: Job) -> None:
        job.ended = True
        if job.num_missing:
            coalescer.drop(job)

    def batch(fails: bool, nested_fails: bool | None = None) -> None:
        """`nested_fails`: of a batch of others, taken from the end, within this one; None: none."""
        waiting = [(j, i) for j in jobs if not j.ended for i in range(len(j.rows))]
        missing = [(job, index) for job, index in waiting if job.rows[index] is None]
        running = coalescer.begin(missing[:5])
        if nested_fails is not None:
            finish(*coalescer.begin(missing[5:][-2:]), nested_fails)
        finish(*running, fails)

    def finish(members: list[Member], riders: dict[Member, list[Member]], fails: bool) -> None:
        for member in members:
            if fails:
                for job, index in (member, *riders.get(member, ())):
                    if not job.ended and job.rows[index] is None:
                        end(job)
                continue
            for job, index in coalescer.done(member):
                if not job.ended and job.rows[index] is None:
                    assert job.payloads[index] == member[0].payloads[member[1]]
                    job.rows[index] = job.payloads[index].upper()
                    job.num_missing -= 1
                    if not job.num_missing:
                        end(job)

    for what, payloads in script:
        if what == "add":
            jobs.append(Job("m", payloads, [1] * len(payloads), keys=payloads))
            jobs[-1].rows, jobs[-1].num_missing = [None] * len(payloads), len(payloads)
            coalescer.add(jobs[-1])
        elif what == "cancel":
            for job in [job for job in jobs if not job.ended][:1]:
                end(job)
        elif what == "nest":
            batch("a" in payloads, "b" in payloads)
        else:
            batch(what == "fail")
    while any(not job.ended for job in jobs):
        batch(False)
    assert len(coalescer) == 0
