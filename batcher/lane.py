"""A lane: one device's one compute thread.

It asks the plan for a step, runs it, and hands every row to its job. There is no timer: a step is
whatever waits when the lane is free. A long step pauses between the model's layers, and an urgent
job that has come meanwhile runs there and then, nested, one level deep, for less than half of the
time (batcher/share.py).
It knows no tensor and no model: `run_step` is given to it.
Invariant: every job that `submit` accepts ends exactly once, with rows, an error, or by `cancel`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Hashable

from batcher.budget import StepBudget
from batcher.job import Job
from batcher.open_jobs import OpenJobs
from batcher.plan import Plan, Step
from batcher.running import Running
from batcher.share import Share
from batcher.steps import Pause, RunStep, StepFailed, StepRunner, is_memory_error

log = logging.getLogger("embedding.lane")

OnStep = Callable[[Step, float, bool], None]  # the step, its seconds, whether it gave rows


class LaneClosed(Exception):
    """The lane takes no more work: it is draining, stopped or dead. The text says which."""


class Lane:
    """`run_step(group, payloads, pause)` returns one row per payload, in order; it runs on this
    thread and calls `pause`, unless that is None, wherever it can be interrupted.

    `max_step_tokens` may be a StepBudget that finds it. `max_urgent_tokens` is the plan's; 0: no
    step pauses.
    `on_start` runs first on the thread (thread counts are per thread in OpenMP), `on_step` after
    each step.
    """

    def __init__(
        self,
        run_step: RunStep,
        max_step_tokens: int | StepBudget,
        *,
        max_urgent_tokens: int = 0,
        name: str = "lane",
        on_start: Callable[[], None] = lambda: None,
        on_step: OnStep = lambda step, seconds, is_done: None,
        is_out_of_memory: Callable[[BaseException], bool] = is_memory_error,
        free: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_step = on_step
        self._steps = StepRunner(run_step, is_out_of_memory, free)
        self._name = name
        if isinstance(max_step_tokens, int):
            max_urgent_tokens = min(max_urgent_tokens, max_step_tokens)
            max_step_tokens = StepBudget((max_step_tokens,))
        self._budget = max_step_tokens
        self._on_start = on_start
        self.max_urgent_tokens = max_urgent_tokens  # jobs of more wait their turn; 0: all do
        self._plan = Plan(max_urgent_tokens)
        self._jobs = OpenJobs(self._plan)
        self._changed = threading.Condition()
        self._running: list[Running] = []  # the step that runs, and the one nested in it
        self._share = Share()
        self._started_at = 0.0  # of the outer step; 0: none runs
        self._closed_because = ""
        self._stopping = False
        self.num_steps = 0
        self.num_cancelled = 0
        self.num_yields = 0
        self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._main, name=self._name, daemon=True)
        thread.start()
        self._thread = thread

    def revive(self) -> None:
        """A new thread after the old one has died; it takes work again. Its jobs have failed.

        Raises RuntimeError when the system has no thread left to give.
        """
        assert not self.alive
        with self._changed:
            if self._stopping:
                return
            self._running.clear()
            self._start()  # first: it may raise
            self._closed_because = ""

    def join(self) -> None:
        """Blocks until the thread has ended."""
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_waiting_jobs(self) -> int:
        return self._plan.num_waiting_jobs

    @property
    def is_stopping(self) -> bool:
        """It was told to stop: its end is no death."""
        return self._stopping

    @property
    def running_s(self) -> float:
        """For how long the step that runs has been running; 0 when none is."""
        started = self._started_at
        return time.perf_counter() - started if started else 0.0

    @property
    def num_shared(self) -> int:
        """Rows that an identical sequence gave."""
        return self._jobs.num_shared

    @property
    def num_splits(self) -> int:
        """Steps that ran again in halves for want of memory."""
        return self._steps.num_splits

    @property
    def num_waiting_tokens(self) -> int:
        return self._plan.num_waiting_tokens

    @property
    def num_open_jobs(self) -> int:
        """Jobs that wait or run."""
        with self._changed:
            return len(self._jobs)

    def submit(self, job: Job) -> None:
        """Queue a job. Raises LaneClosed when no more work is taken."""
        with self._changed:
            if self._closed_because:
                raise LaneClosed(self._closed_because)
            self._jobs.add(job)
            job.queued_at = time.perf_counter()
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Drop what of the job has not started; rows that still come for it are thrown away."""
        with self._changed:
            self.num_cancelled += not job.ended
            self._jobs.end(job, None)
            self._changed.notify_all()

    def close(self, because: str) -> None:
        """Take no more work; what was accepted goes on."""
        with self._changed:
            self._closed_because = self._closed_because or because

    def stop(self, timeout_s: float, because: str = "the server is shutting down") -> bool:
        """Close, let accepted jobs finish for at most `timeout_s`, fail the rest.

        True when the thread has ended; a step that runs past the limit is abandoned with it.
        """
        self.close(because)
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs, timeout_s)
            self._jobs.end_all(LaneClosed(because))
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            self._on_start()
            while running := self._next_step():
                self._run(running)
                del running  # an idle lane must not keep its last jobs
        except BaseException:
            log.exception("the lane died; its jobs fail")
            self._fail_all(LaneClosed("the compute thread has died"))
            raise
        self._fail_all(LaneClosed(self._closed_because))

    def _next_step(self) -> Running | None:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._plan.num_waiting_jobs or self._stopping)
                if self._stopping:
                    return None
                if running := self._next():
                    return running

    def _next(self) -> Running | None:
        """Urgent jobs go before a long step, within their share, as at its pauses. None when others
        compute all of it. Needs the lock."""
        plan = self._plan
        if plan.is_long(plan.num_bulk_tokens) and plan.has_urgent and self._share.may_begin:
            step = plan.take_urgent()
            if step is not None:
                return self._begin(step, 0)
        budget = self._budget.next(_name(plan.next_group))
        step = plan.take(budget)
        return None if step is None else self._begin(step, budget)

    def _next_urgent(self) -> Running | None:
        with self._changed:
            step = None if self._stopping else self._plan.take_urgent()
            return None if step is None else self._begin(step, 0)

    def _begin(self, step: Step, budget: int) -> Running | None:
        """None when others compute, or have computed, all of it. Needs the lock."""
        now = time.perf_counter()
        for job in dict.fromkeys(job for job, _ in step.members):
            job.started_at = job.started_at or now
        members = self._jobs.begin(step.members, may_ride=not self._running)
        if not members:
            return None
        is_whole = len(members) == len(step.members)
        if not is_whole:  # the others have, or get, an equal's row
            num_tokens = sum(job.costs[index] for job, index in members)
            num_bulk_tokens = min(step.num_bulk_tokens, num_tokens)
            step = Step(step.group, members, num_tokens, num_bulk_tokens)
        running = Running(step, budget, was_full=is_whole and step.is_full)
        self._running.append(running)
        return running

    def _run(self, running: Running) -> None:
        step, num_splits = running.step, self._steps.num_splits
        self._started_at = time.perf_counter()
        running.start(self._started_at)
        is_long = self._plan.is_long(step.num_bulk_tokens)
        is_done = self._compute(running, self._pause if is_long else None)
        now = time.perf_counter()
        self._started_at = 0.0
        taken = running.own_s(now)
        self._on_step(step, taken, is_done)
        if not running.budget:
            self._share.spend(taken)
            return
        self._share.earn(running.bulk_s(now))
        if is_done:
            fits = self._steps.num_splits == num_splits + running.nested_splits
            seconds = taken if fits else math.inf  # for ever: that budget is too large
            self._budget.observe(
                _name(step.group), running.budget, step.num_tokens, seconds, running.was_full
            )

    def _pause(self) -> None:
        """Between two layers of a long step. A fault of the lane's own must not pass for one of the
        step in whose midst it comes: what was taken would never end."""
        try:
            self._run_urgent(self._running[0])
        except Exception as error:
            raise _Broken from error

    def _run_urgent(self, outer: Running) -> None:
        started = time.perf_counter()
        self._share.earn(outer.bulk_s(started))
        if not self._plan.has_urgent or not self._share.may_begin:
            return
        running = self._next_urgent()
        if running is None:
            return
        self.num_yields += 1
        num_splits = self._steps.num_splits
        is_done = self._compute(running, None)
        now = time.perf_counter()
        outer.resume(now, now - started, self._steps.num_splits - num_splits)
        self._share.spend(now - started)
        self._on_step(running.step, now - started, is_done)

    def _compute(self, running: Running, pause: Pause | None) -> bool:
        """Whether the step gave a row; its jobs have theirs, or their error."""
        step = running.step
        outcomes = self._steps.run(step.group, step.members, pause)
        with self._changed:
            self._jobs.hand_out(step.members, outcomes)
            self._running.remove(running)
            self.num_steps += 1
            self._changed.notify_all()
        return any(not isinstance(outcome, StepFailed) for outcome in outcomes)

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            self._closed_because = self._closed_because or str(error)
            self._jobs.end_all(error)
            self._running.clear()
            self._started_at = 0.0
            self._changed.notify_all()


class _Broken(BaseException):
    """The lane itself has failed within a step."""


def _name(group: Hashable) -> Hashable:
    """What a budget is remembered by: a model that is loaded again is the same."""
    return getattr(group, "name", group)
