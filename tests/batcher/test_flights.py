"""Identical sequences are computed once, and nobody waits longer for it, or fails for another."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.flights import Flights
from batcher.job import Job
from batcher.lane import Lane
from batcher.steps import Pause, StepFailed

PATIENCE_S = 30.0


class Gate:
    """Runs steps one at a time, each when the test lets it."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []
        self.began, self.may_end = threading.Semaphore(0), threading.Semaphore(0)
        self.fails = False

    def run(self, group: Hashable, payloads: list[str], pause: Pause | None) -> list[str]:
        self.steps.append(payloads)
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
def lane(gate: Gate) -> Iterator[Lane]:
    """Steps of two sequences of cost 1."""
    lane = Lane(gate.run, 2)
    yield lane
    for _ in range(100):
        gate.end()
    assert lane.stop(PATIENCE_S)


class Waiting:
    def __init__(self, lane: Lane, *payloads: str, group: str = "m") -> None:
        self.ended = threading.Event()
        self.job = Job(group, payloads, [1] * len(payloads), keys=payloads)
        self.job.on_end = self.ended.set
        lane.submit(self.job)

    def rows(self) -> list[Any]:
        assert self.ended.wait(PATIENCE_S)
        assert self.job.error is None
        return self.job.rows


def test_equals_within_a_job_are_computed_once(lane: Lane, gate: Gate) -> None:
    job = Waiting(lane, "a", "a", "b", "a")
    for _ in range(2):
        gate.end()
    assert job.rows() == ["A", "A", "B", "A"]
    assert sorted(payload for step in gate.steps for payload in step) == ["a", "b"]
    assert lane.num_shared == 2


def test_one_that_waits_gets_the_row_of_one_that_runs(lane: Lane, gate: Gate) -> None:
    first = Waiting(lane, "a")
    gate.next()
    second = Waiting(lane, "a")
    gate.end()
    assert first.rows() == second.rows() == ["A"]
    assert gate.steps == [["a"]]
    for job in (first.job, second.job):
        assert job.queued_at <= job.started_at <= job.ended_at


def test_a_query_does_not_wait_for_its_equal_at_the_end_of_a_bulk_job(
    lane: Lane, gate: Gate
) -> None:
    bulk = Waiting(lane, *"abcdefgh")
    gate.next()
    query = Waiting(lane, "h")
    gate.end()
    gate.next()
    gate.end()
    assert query.rows() == ["H"]
    assert not bulk.ended.is_set()
    for _ in range(3):
        gate.end()
    assert bulk.rows() == list("ABCDEFGH")
    assert sum(step.count("h") for step in gate.steps) == 1


def test_models_do_not_share(lane: Lane, gate: Gate) -> None:
    jobs = [Waiting(lane, "a", group="m"), Waiting(lane, "a", group="n")]
    gate.end()
    gate.end()
    assert [job.rows() for job in jobs] == [["A"], ["A"]]
    assert gate.steps == [["a"], ["a"]]


def test_a_cancelled_runner_still_serves_who_waits(lane: Lane, gate: Gate) -> None:
    first = Waiting(lane, "a")
    gate.next()
    second = Waiting(lane, "a")
    lane.cancel(first.job)
    gate.end()
    assert second.rows() == ["A"]
    assert gate.steps == [["a"]]


def test_a_cancelled_waiter_leaves_its_equal_alone(lane: Lane, gate: Gate) -> None:
    busy = Waiting(lane, "x", "y")
    gate.next()
    first, second = Waiting(lane, "a"), Waiting(lane, "a")
    lane.cancel(first.job)
    gate.end()
    gate.end()
    assert busy.rows() == ["X", "Y"]
    assert second.rows() == ["A"]


def test_a_failure_reaches_who_rode_along_and_nobody_else(lane: Lane, gate: Gate) -> None:
    busy = Waiting(lane, "x", "y")
    gate.next()
    together = [Waiting(lane, "a"), Waiting(lane, "a")]
    later = Waiting(lane, "a")
    gate.end()
    assert busy.rows() == ["X", "Y"]
    gate.next()
    gate.fails = True
    gate.end()
    for job in together:
        assert job.ended.wait(PATIENCE_S)
        assert isinstance(job.job.error, StepFailed)
    gate.next()
    gate.fails = False
    gate.end()
    assert later.rows() == ["A"]


def test_who_rode_along_is_told_its_own_place_in_its_own_request() -> None:
    began, may_end = threading.Event(), threading.Event()

    def run(group: Hashable, payloads: list[str], pause: Pause | None) -> list[Any]:
        began.set()
        assert may_end.wait(PATIENCE_S)
        return [ValueError("bad") if payload == "c" else payload for payload in payloads]

    lane = Lane(run, 10)
    busy = Waiting(lane, "x")
    assert began.wait(PATIENCE_S)
    bulk, rider = Waiting(lane, *"abc"), Waiting(lane, "c")
    may_end.set()
    assert busy.rows() == ["x"]
    for job, text in ((bulk, "input 2: bad"), (rider, "input 0: bad")):
        assert job.ended.wait(PATIENCE_S)
        assert str(job.job.error) == text
    assert lane.stop(PATIENCE_S)


@pytest.mark.parametrize("outer_fails", [False, True])
@pytest.mark.parametrize("nested_fails", [False, True])
def test_a_query_whose_equal_runs_in_a_long_step_neither_waits_for_it_nor_fails_with_it(
    outer_fails: bool, nested_fails: bool
) -> None:
    lanes: list[Lane] = []
    queries: list[Waiting] = []

    def run(group: Hashable, payloads: list[str], pause: Pause | None) -> list[str]:
        if pause is None:
            if nested_fails:
                raise RuntimeError("no")
            return [payload.upper() for payload in payloads]
        queries.append(Waiting(lanes[0], "c"))
        pause()
        assert queries[0].ended.is_set()
        if outer_fails:
            raise RuntimeError("no")
        return [payload.upper() for payload in payloads]

    lane = Lane(run, 10, max_urgent_tokens=1)
    lanes.append(lane)
    bulk = Waiting(lane, *"abcde")
    assert bulk.ended.wait(PATIENCE_S)
    assert lane.stop(PATIENCE_S)
    assert lane.num_yields == 1
    assert (bulk.job.error is not None) == outer_fails
    assert (queries[0].job.error is not None) == nested_fails
    if not outer_fails:
        assert bulk.job.rows == list("ABCDE")
    if not nested_fails:
        assert queries[0].job.rows == ["C"]
    assert lane.num_shared == 0, "each was computed"
    assert len(lane._jobs._flights) == 0


SCRIPT = st.lists(
    st.tuples(
        st.sampled_from(["add", "step", "fail", "nest", "cancel"]),
        st.lists(st.sampled_from("abc"), min_size=1, max_size=4),
    ),
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(SCRIPT)
def test_any_schedule_leaves_nothing_behind_and_mixes_nothing_up(
    script: list[tuple[str, list[str]]],
) -> None:
    flights = Flights()
    jobs: list[Job] = []

    def end(job: Job) -> None:
        job.ended = True
        if job.num_missing:
            flights.drop(job)

    def step(fails: bool, nested_fails: bool | None = None) -> None:
        """`nested_fails`: of a step of others, taken from the end, within this one; None: none."""
        waiting = [(j, i) for j in jobs if not j.ended for i in range(len(j.rows))]
        missing = [m for m in waiting if not m[0].has_row(m[1])]
        running = flights.begin(missing[:5])
        if nested_fails is not None:
            finish(flights.begin(missing[5:][-2:], may_ride=False), nested_fails)
        finish(running, fails)

    def finish(members: list[tuple[Job, int]], fails: bool) -> None:
        for member in members:
            if fails:
                for job, index in flights.failed(member):
                    if not job.ended and not job.has_row(index):
                        end(job)
                continue
            for job, index in flights.done(member):
                if not job.ended and not job.has_row(index):
                    assert job.payloads[index] == member[0].payloads[member[1]]
                    job.set_row(index, job.payloads[index].upper())
                    if not job.num_missing:
                        end(job)

    for what, payloads in script:
        if what == "add":
            jobs.append(Job("m", payloads, [1] * len(payloads), keys=payloads))
            flights.add(jobs[-1])
        elif what == "cancel":
            for job in [job for job in jobs if not job.ended][:1]:
                end(job)
        elif what == "nest":
            step("a" in payloads, "b" in payloads)
        else:
            step(what == "fail")
    while any(not job.ended for job in jobs):
        step(False)
    assert len(flights) == 0
