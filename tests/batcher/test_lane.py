"""Lanes with a fake engine: every step is held until the test releases it with its outcome."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies

from batcher.job import Job
from batcher.lane import Lane, LaneClosed
from batcher.steps import Pause, StepFailed

PATIENCE_S = 20.0  # reached only by a test that fails

dies = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class HeldStep:
    """A step that runs until `release`. By default it gives the row `row of <payload>`."""

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


class HeldLane(Lane):
    """A lane that shows each step to the test."""

    def __init__(self, max_step_tokens: int) -> None:
        self._shown: queue.SimpleQueue[HeldStep | None] = queue.SimpleQueue()
        self._freed = threading.Event()
        super().__init__(self._hold, max_step_tokens)

    def _hold(self, group: Hashable, payloads: list[str], pause: Pause | None) -> Sequence[str]:
        step = HeldStep(payloads)
        self._shown.put(step)
        if self._freed.is_set():
            step.release()
        return step.result()

    def next_step(self) -> HeldStep:
        """The step that runs now; waits for it to start."""
        while (step := self._shown.get(timeout=PATIENCE_S)) is None:
            pass
        return step

    def next_step_while(self, some_job_is_open: Callable[[], bool]) -> HeldStep | None:
        """The step that runs now or comes next; None when all jobs end without one."""
        while some_job_is_open():
            if step := self._shown.get(timeout=PATIENCE_S):
                return step
        return None

    def look_again(self) -> None:
        """For `next_step_while`: some job has ended."""
        self._shown.put(None)

    def free(self) -> None:
        """Hold no more."""
        self._freed.set()
        while not self._shown.empty():
            if step := self._shown.get():
                step.release()


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


def check_ended(lane: Lane) -> None:
    lane._thread.join(PATIENCE_S)
    assert not lane.alive


def submit(lane: Lane, name: str, num_sequences: int, group: str = "") -> Watched:
    watched = Watched(name, num_sequences, group)
    lane.submit(watched.job)
    return watched


def busy(lane: HeldLane) -> HeldStep:
    """The running step of a job of its own, so that what is submitted next waits."""
    submit(lane, "busy", 1, group="busy")
    return lane.next_step()


@pytest.fixture
def lane() -> Iterator[HeldLane]:
    """Steps of at most four sequences."""
    lane = HeldLane(4)
    yield lane
    lane.free()
    lane.stop(PATIENCE_S)
    check_ended(lane)


def test_rows_reach_their_own_jobs_in_order(lane: HeldLane) -> None:
    first = busy(lane)
    jobs = [submit(lane, "a", 5), submit(lane, "b", 1), submit(lane, "c", 3, group="other")]
    assert (lane.num_waiting_jobs, lane.num_waiting_tokens, lane.num_open_jobs) == (3, 9, 4)
    first.release()
    lane.free()
    for job in jobs:
        job.check_rows()
    assert (lane.num_waiting_jobs, lane.num_waiting_tokens) == (0, 0)


def test_a_step_is_whatever_waits_when_the_lane_is_free(lane: HeldLane) -> None:
    first = busy(lane)
    submit(lane, "a", 3)
    submit(lane, "b", 3)
    first.release()
    step = lane.next_step()
    assert step.payloads == ["a0", "b0", "a1", "b1"]
    step.release()


def test_the_times_of_a_job_are_in_order(lane: HeldLane) -> None:
    job = submit(lane, "a", 9)
    lane.free()
    job.check_rows()
    assert 0 < job.job.queued_at <= job.job.started_at <= job.job.ended_at


def test_a_failing_step_fails_only_its_own_jobs(lane: HeldLane) -> None:
    first = busy(lane)
    jobs = [submit(lane, "a", 2), submit(lane, "b", 2), submit(lane, "c", 2, group="other")]
    first.release()
    cause = RuntimeError("out of memory")
    lane.next_step().release(cause)
    for failed in jobs[:2]:
        failed.check_failed(StepFailed)
        assert failed.job.error is not None
        assert failed.job.error.__cause__ is cause
        assert "memory" not in str(failed.job.error), "the cause is for the log only"
    lane.next_step().release()
    jobs[2].check_rows()
    assert lane.alive


def test_the_rest_of_a_failed_job_never_runs(lane: HeldLane) -> None:
    failed = submit(lane, "a", 9)
    lane.next_step().release(ValueError())
    failed.check_failed(StepFailed)
    assert (lane.num_waiting_jobs, lane.num_waiting_tokens, lane.num_open_jobs) == (0, 0, 0)
    after = submit(lane, "b", 1)
    step = lane.next_step()
    assert step.payloads == ["b0"]
    step.release()
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
def test_a_wrong_number_of_rows_fails_the_step_and_not_the_lane(lane: HeldLane, rows: Any) -> None:
    wrong = submit(lane, "a", 2)
    lane.next_step().release(rows)
    wrong.check_failed(StepFailed)
    after = submit(lane, "b", 2)
    lane.next_step().release()
    after.check_rows()


@dies
@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_dead_lane_fails_its_jobs_and_takes_no_more(error: BaseException) -> None:
    lane = HeldLane(4)
    running = submit(lane, "a", 9)
    step = lane.next_step()
    waiting = submit(lane, "b", 1)
    step.release(error)
    running.check_failed(LaneClosed)
    waiting.check_failed(LaneClosed)
    assert "died" in str(waiting.job.error)
    with pytest.raises(LaneClosed, match="died"):
        submit(lane, "c", 1)
    check_ended(lane)
    assert lane.num_open_jobs == 0


@dies
def test_a_lane_that_cannot_start_fails_the_jobs_it_has() -> None:
    submitted = threading.Event()

    def on_start() -> None:
        assert submitted.wait(PATIENCE_S)
        raise OSError("no device")

    lane = Lane(lambda group, payloads, pause: payloads, 4, on_start=on_start)
    waiting = submit(lane, "a", 1)
    submitted.set()
    waiting.check_failed(LaneClosed)
    check_ended(lane)


def test_a_cancelled_waiting_job_never_runs(lane: HeldLane) -> None:
    first = busy(lane)
    cancelled, neighbour = submit(lane, "a", 2), submit(lane, "b", 2)
    lane.cancel(cancelled.job)
    lane.cancel(cancelled.job)
    assert (cancelled.num_ends, cancelled.job.error) == (1, None)
    assert (lane.num_waiting_jobs, lane.num_waiting_tokens) == (1, 2)
    first.release()
    step = lane.next_step()
    assert step.payloads == ["b0", "b1"]
    step.release()
    neighbour.check_rows()


def test_a_cancelled_member_leaves_the_step_intact(lane: HeldLane) -> None:
    first = busy(lane)
    cancelled, neighbour = submit(lane, "a", 2), submit(lane, "b", 2)
    first.release()
    step = lane.next_step()
    assert step.payloads == ["a0", "b0", "a1", "b1"]
    lane.cancel(cancelled.job)
    assert cancelled.num_ends == 1
    step.release()
    neighbour.check_rows()
    assert cancelled.num_ends == 1


def test_the_rest_of_a_cancelled_job_never_runs(lane: HeldLane) -> None:
    cancelled = submit(lane, "a", 12)
    lane.next_step().release()
    step = lane.next_step()
    neighbour = submit(lane, "b", 1)
    lane.cancel(cancelled.job)
    assert (lane.num_waiting_jobs, lane.num_waiting_tokens) == (1, 1)
    step.release()
    step = lane.next_step()
    assert step.payloads == ["b0"]
    step.release()
    neighbour.check_rows()
    assert cancelled.num_ends == 1


def test_a_cancelled_member_of_a_failing_step_ends_once(lane: HeldLane) -> None:
    cancelled = submit(lane, "a", 2)
    step = lane.next_step()
    lane.cancel(cancelled.job)
    step.release(ValueError())
    after = submit(lane, "b", 1)
    lane.next_step().release()
    after.check_rows()
    assert (cancelled.num_ends, cancelled.job.error) == (1, None)


def test_cancelling_a_finished_job_does_nothing(lane: HeldLane) -> None:
    job = submit(lane, "a", 1)
    lane.next_step().release()
    job.check_rows()
    lane.cancel(job.job)
    job.check_rows()


def test_a_closed_lane_finishes_what_it_has_accepted(lane: HeldLane) -> None:
    first = busy(lane)
    accepted = submit(lane, "a", 9)
    lane.close("the model is replaced")
    lane.close("a later reason")
    with pytest.raises(LaneClosed, match="the model is replaced"):
        submit(lane, "b", 1)
    first.release()
    lane.free()
    accepted.check_rows()


def test_stop_drains(lane: HeldLane) -> None:
    first = busy(lane)
    accepted = submit(lane, "a", 9)
    results: queue.SimpleQueue[bool] = queue.SimpleQueue()
    stopper = threading.Thread(target=lambda: results.put(lane.stop(PATIENCE_S)))
    stopper.start()
    first.release()
    lane.free()
    assert results.get(timeout=PATIENCE_S)
    stopper.join()
    accepted.check_rows()
    assert not lane.alive


def test_stop_without_time_fails_the_rest(lane: HeldLane) -> None:
    running = submit(lane, "a", 5)
    step = lane.next_step()
    waiting = submit(lane, "b", 1)
    stopper = threading.Thread(target=lane.stop, args=(0.0, "the server goes"))
    stopper.start()
    for job in (running, waiting):
        job.check_failed(LaneClosed)
        assert str(job.job.error) == "the server goes"
    step.release()
    stopper.join()
    check_ended(lane)
    assert (running.num_ends, waiting.num_ends) == (1, 1), "late rows end nothing again"
    with pytest.raises(LaneClosed, match="the server goes"):
        submit(lane, "c", 1)


def test_an_idle_lane_stops_at_once(lane: HeldLane) -> None:
    assert lane.stop(0)
    assert not lane.alive


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
    lane = HeldLane(4)
    jobs: list[Watched] = []
    cancelled: set[Watched] = set()
    for name, number in operations:
        if name == "submit":
            jobs.append(Watched(f"j{len(jobs)}.", number, group=str(number % 2)))
            jobs[-1].tell = lane.look_again
            lane.submit(jobs[-1].job)
        elif name == "cancel" and jobs:
            cancelled.add(jobs[number % len(jobs)])
            lane.cancel(jobs[number % len(jobs)].job)
        elif step := lane.next_step_while(lambda: not all(job.num_ends for job in jobs)):
            outcomes = {"fail": ValueError(), "garble": [""] * 9}
            step.release(outcomes.get(name))
    if drain:
        lane.free()
    stopper = threading.Thread(target=lane.stop, args=(PATIENCE_S if drain else 0.0,))
    stopper.start()
    for job in jobs:
        job.wait()
    lane.free()
    stopper.join()
    check_ended(lane)
    for job in jobs:
        assert job.num_ends == 1
        if job.job.error is None and job not in cancelled:
            job.check_rows()
        assert not (drain and isinstance(job.job.error, LaneClosed))
    assert (lane.num_open_jobs, lane.num_waiting_jobs, lane.num_waiting_tokens) == (0, 0, 0)
