"""A long step pauses; a short job that has come meanwhile runs there and then, and little more."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import pytest

from batcher.budget import StepBudget
from batcher.job import Job
from batcher.lane import Lane, LaneClosed
from batcher.share import Share
from batcher.steps import Pause, StepFailed

PATIENCE_S = 30.0
URGENT = 4
LONG = 100  # tokens of a bulk sequence


class Scripted:
    """Runs steps; at each pause of a long one it calls what the test has put there."""

    def __init__(self) -> None:
        self.lane: Lane
        self.log: list[str] = []
        self.at_pauses: list[Callable[[], None]] = []
        self.saw_pause: list[bool] = []
        self.fails: set[str] = set()

    def run(self, group: Hashable, payloads: list[str], pause: Pause | None) -> list[str]:
        name = f"{group}:{','.join(payloads)}"
        self.log.append(f"begin {name}")
        self.saw_pause.append(pause is not None)
        if pause is not None:
            for at_pause in self.at_pauses:
                at_pause()
                pause()
        if self.fails & set(payloads):
            raise RuntimeError("no")
        self.log.append(f"end {name}")
        return [payload.upper() for payload in payloads]


@pytest.fixture
def engine() -> Iterator[Scripted]:
    engine = Scripted()
    engine.lane = Lane(engine.run, 1000, max_urgent_tokens=URGENT)
    yield engine
    engine.lane.stop(PATIENCE_S)


class Waiting:
    """A job and its end."""

    def __init__(self, lane: Lane, group: str, *payloads: str, cost: int = 1) -> None:
        self.ended = threading.Event()
        self.job = Job(group, payloads, [cost] * len(payloads))
        self.job.on_end = self.ended.set
        lane.submit(self.job)

    def rows(self) -> list[str]:
        assert self.ended.wait(PATIENCE_S)
        assert self.job.error is None
        return self.job.rows


def test_a_short_job_runs_inside_a_long_step(engine: Scripted) -> None:
    short: list[Waiting] = []
    engine.at_pauses = [lambda: short.append(Waiting(engine.lane, "m", "q"))]
    bulk = Waiting(engine.lane, "m", "b", cost=LONG)
    assert bulk.rows() == ["B"]
    assert short[0].rows() == ["Q"]
    assert engine.log == ["begin m:b", "begin m:q", "end m:q", "end m:b"]
    assert engine.lane.num_yields == 1


def test_another_models_job_does_too(engine: Scripted) -> None:
    short: list[Waiting] = []
    engine.at_pauses = [lambda: short.append(Waiting(engine.lane, "other", "q"))]
    bulk = Waiting(engine.lane, "m", "b", cost=LONG)
    bulk.rows()
    assert short[0].rows() == ["Q"]
    assert engine.log[1] == "begin other:q"


def keep(jobs: list[Waiting]) -> None:
    """They are looked at by the log alone."""


def test_a_nested_step_does_not_pause_itself(engine: Scripted) -> None:
    engine.at_pauses = [lambda: keep(submit_all(engine.lane, 1))]
    Waiting(engine.lane, "m", "b", cost=LONG).rows()
    assert engine.saw_pause == [True, False]


def submit_all(lane: Lane, count: int, cost: int = 1) -> list[Waiting]:
    return [Waiting(lane, "m", f"q{i}", cost=cost) for i in range(count)]


def test_several_short_jobs_share_a_nested_step_up_to_the_limit(engine: Scripted) -> None:
    engine.at_pauses = [lambda: keep(submit_all(engine.lane, 3, cost=2))]
    Waiting(engine.lane, "m", "b", cost=LONG).rows()
    assert engine.log[1] == "begin m:q0,q1"
    assert engine.lane.stop(PATIENCE_S)
    assert engine.log[-1] == "end m:q2"


def test_a_longer_job_waits_for_the_end_of_the_step(engine: Scripted) -> None:
    late: list[Waiting] = []
    engine.at_pauses = [lambda: late.append(Waiting(engine.lane, "m", "x", cost=URGENT + 1))]
    Waiting(engine.lane, "m", "b", cost=LONG).rows()
    assert late[0].rows() == ["X"]
    assert engine.log == ["begin m:b", "end m:b", "begin m:x", "end m:x"]
    assert engine.lane.num_yields == 0


def test_the_last_texts_of_a_bulk_job_are_not_urgent(engine: Scripted) -> None:
    bulk: list[Waiting] = []
    engine.at_pauses = [lambda: bulk.append(Waiting(engine.lane, "m", *"abcdef"))]
    Waiting(engine.lane, "m", "b", cost=LONG).rows()
    assert bulk[0].rows() == list("ABCDEF")
    assert engine.lane.num_yields == 0


def test_a_short_step_does_not_pause(engine: Scripted) -> None:
    Waiting(engine.lane, "m", "a", cost=2 * URGENT).rows()
    assert engine.saw_pause == [False]


def test_without_an_urgent_limit_nothing_pauses() -> None:
    engine = Scripted()
    engine.lane = Lane(engine.run, 1000)
    Waiting(engine.lane, "m", "b", cost=LONG).rows()
    engine.lane.stop(PATIENCE_S)
    assert engine.saw_pause == [False]


def test_a_nested_step_that_fails_leaves_the_long_one_alone(engine: Scripted) -> None:
    short: list[Waiting] = []
    engine.fails = {"q"}
    engine.at_pauses = [lambda: short.append(Waiting(engine.lane, "m", "q"))]
    assert Waiting(engine.lane, "m", "b", cost=LONG).rows() == ["B"]
    assert isinstance(short[0].job.error, StepFailed)


def test_a_long_step_that_fails_leaves_the_nested_one_alone(engine: Scripted) -> None:
    short: list[Waiting] = []
    engine.fails = {"b"}
    engine.at_pauses = [lambda: short.append(Waiting(engine.lane, "m", "q"))]
    bulk = Waiting(engine.lane, "m", "b", cost=LONG)
    assert bulk.ended.wait(PATIENCE_S)
    assert isinstance(bulk.job.error, StepFailed)
    assert short[0].rows() == ["Q"]


def test_a_short_job_that_is_cancelled_does_not_run(engine: Scripted) -> None:
    def come_and_go() -> None:
        waiting = Waiting(engine.lane, "m", "q")
        engine.lane.cancel(waiting.job)

    engine.at_pauses = [come_and_go]
    Waiting(engine.lane, "m", "b", cost=LONG).rows()
    assert engine.log == ["begin m:b", "end m:b"]


def test_a_lane_that_stops_fails_both(engine: Scripted) -> None:
    at_pause, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        Waiting(engine.lane, "m", "q")
        at_pause.set()
        assert go_on.wait(PATIENCE_S)

    engine.at_pauses = [hold]
    bulk = Waiting(engine.lane, "m", "b", cost=LONG)
    assert at_pause.wait(PATIENCE_S)
    engine.lane.stop(0.0)
    go_on.set()
    assert bulk.ended.wait(PATIENCE_S)
    assert isinstance(bulk.job.error, LaneClosed)
    assert engine.lane.num_open_jobs == 0


def test_the_share_is_two_fifths_and_a_quiet_time_saves_little() -> None:
    share = Share()
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


def test_a_step_that_took_for_ever_is_forgiven_most_of_its_debt() -> None:
    share = Share()
    share.spend(1000)
    share.earn(15.1)
    assert share.may_begin


def test_urgent_work_that_has_spent_its_share_waits(engine: Scripted) -> None:
    share = Share()
    share.spend(1000)
    engine.lane._share = share
    engine.at_pauses = [lambda: keep(submit_all(engine.lane, 1))]
    Waiting(engine.lane, "m", "b", cost=LONG).rows()
    assert engine.log[:2] == ["begin m:b", "end m:b"]


def steps_behind_a_first(*coming: tuple[str, int]) -> list[list[str]]:
    """What runs when jobs of (payload, cost) have come while a first one ran."""
    gate, is_running = threading.Event(), threading.Event()
    steps: list[list[str]] = []

    def run(group: Hashable, payloads: list[str], pause: Pause | None) -> list[str]:
        steps.append(payloads)
        is_running.set()
        assert gate.wait(PATIENCE_S)
        return payloads

    lane = Lane(run, 1000, max_urgent_tokens=URGENT)
    jobs = [Waiting(lane, "m", "first")]
    assert is_running.wait(PATIENCE_S)
    jobs += [Waiting(lane, "m", payload, cost=cost) for payload, cost in coming]
    gate.set()
    for job in jobs:
        job.rows()
    lane.stop(PATIENCE_S)
    return steps


def test_short_jobs_alone_share_one_step() -> None:
    """They are no reason to cut a step of nothing but short jobs into small ones."""
    assert len(steps_behind_a_first(*((f"q{i}", 1) for i in range(2 * URGENT)))) == 2


def test_short_jobs_go_before_a_long_step_and_not_into_it() -> None:
    assert steps_behind_a_first(("bulk", LONG), ("q", 1)) == [["first"], ["q"], ["bulk"]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_lanes_own_at_a_pause_fails_all_and_loses_nobody(engine: Scripted) -> None:
    short: list[Waiting] = []

    def come() -> None:
        short.append(Waiting(engine.lane, "m", "q"))
        engine.lane._on_step = lambda step, seconds, is_done: 1 / 0  # type: ignore[assignment]

    engine.at_pauses = [come]
    bulk = Waiting(engine.lane, "m", "b", cost=LONG)
    assert bulk.ended.wait(PATIENCE_S)
    assert isinstance(bulk.job.error, LaneClosed)
    assert short[0].rows() == ["Q"]  # its step was done
    engine.lane._thread.join(PATIENCE_S)
    assert not engine.lane.alive


def test_a_nested_step_without_memory_says_nothing_of_the_outer_ones_budget() -> None:
    budgets: list[float] = []

    class Noting(StepBudget):
        def observe(self, *told: Any) -> None:
            budgets.append(told[3])

    def run(group: Hashable, payloads: list[str], pause: Pause | None) -> list[str]:
        if pause is not None:
            submit_all(lane, 2)
            pause()
        elif len(payloads) > 1:
            raise MemoryError
        return payloads

    lane = Lane(run, Noting((1000,)), max_urgent_tokens=URGENT)
    Waiting(lane, "m", "b", cost=LONG).rows()
    lane.stop(PATIENCE_S)
    assert lane.num_splits == lane.num_yields == 1
    assert budgets
    assert math.inf not in budgets


def test_an_urgent_step_is_no_larger_than_steps_may_be() -> None:
    sizes: list[int] = []

    def run(group: Hashable, payloads: list[str], pause: Pause | None) -> list[str]:
        sizes.append(len(payloads))
        return payloads

    lane = Lane(run, 6, max_urgent_tokens=64)
    with lane._changed:  # so that all of it waits at once
        bulk = Waiting(lane, "m", *"abcdefgh", cost=5)
        short = submit_all(lane, 9, cost=1)
    bulk.rows()
    for one in short:
        one.rows()
    lane.stop(PATIENCE_S)
    assert 1 < max(sizes) <= 6
