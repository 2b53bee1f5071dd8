"""A lane: one device's one compute thread.

It asks the plan for a step, runs it, and hands every row to its job. There is no timer: a step is
whatever waits when the lane is free. A long step pauses between the model's layers, and a short job
that has come meanwhile runs there and then, nested, one level deep, for at most half of the time.
It knows no tensor and no model: `run_step` is given to it.
Invariant: every job that `submit` accepts ends exactly once, with rows, an error, or by `cancel`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from batcher.job import Job
from batcher.plan import Plan, Step
from batcher.share import HalfShare

log = logging.getLogger("embedding.lane")

# Called by a forward between two layers, on the lane's thread.
Pause = Callable[[], None]
RunStep = Callable[[Hashable, list[Any], Pause | None], Sequence[Any]]
OnStep = Callable[[Step, float, bool], None]  # the step, its seconds, whether it gave rows


# A step of more than this many times the urgent limit pauses; a shorter one is soon over.
_LONG_STEP = 2


class LaneClosed(Exception):
    """The lane takes no more work: it is draining, stopped or dead. The text says which."""


class StepFailed(Exception):
    """The forward of this job's step raised; the cause is chained and logged, never shown."""


class Lane:
    """`run_step(group, payloads, pause)` returns one row per payload, in order; it runs on this
    thread and calls `pause`, unless that is None, wherever it can be interrupted.

    Jobs of at most `max_urgent_tokens` run at pauses; 0: none does.
    `on_start` runs first on the thread (thread counts are per thread in OpenMP), `on_step` after
    each step.
    """

    def __init__(
        self,
        run_step: RunStep,
        max_step_tokens: int,
        *,
        max_urgent_tokens: int = 0,
        name: str = "lane",
        on_start: Callable[[], None] = lambda: None,
        on_step: OnStep = lambda step, seconds, is_done: None,
    ) -> None:
        self._on_step = on_step
        self._run_step = run_step
        self._max_step_tokens = max_step_tokens
        self._on_start = on_start
        self._plan = Plan(max_urgent_tokens)
        self._changed = threading.Condition()
        self._running: list[list[Job]] = []  # the jobs of the step that runs; of the nested one
        self._share = HalfShare()
        self._resumed_at = 0.0  # when the outer step began or went on
        self._nested_s = 0.0  # of the outer step that runs
        self._closed_because = ""
        self._stopping = False
        self.num_steps = 0
        self.num_cancelled = 0
        self.num_yields = 0
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_waiting_jobs(self) -> int:
        return self._plan.num_waiting_jobs

    @property
    def num_waiting_tokens(self) -> int:
        return self._plan.num_waiting_tokens

    @property
    def num_open_jobs(self) -> int:
        """Jobs that wait or run."""
        with self._changed:
            return len(self._open_jobs())

    def submit(self, job: Job) -> None:
        """Queue a job. Raises LaneClosed when no more work is taken."""
        with self._changed:
            if self._closed_because:
                raise LaneClosed(self._closed_because)
            job.claim = self._plan.add(job, job.group, job.costs, job.alone)
            job.queued_at = time.perf_counter()
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Drop what of the job has not started; rows that still come for it are thrown away."""
        with self._changed:
            self.num_cancelled += not job.ended
            self._end(job, None)

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
            self._changed.wait_for(lambda: not self._open_jobs(), timeout_s)
            for job in self._open_jobs():
                self._end(job, LaneClosed(because))
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            self._on_start()
            while step := self._next_step():
                self._run(step)
                del step  # an idle lane must not keep its last jobs
        except BaseException:
            log.exception("the lane died; its jobs fail")
            self._fail_all(LaneClosed("the compute thread has died"))
            raise
        self._fail_all(LaneClosed(self._closed_because))

    def _next_step(self) -> Step | None:
        with self._changed:
            self._changed.wait_for(lambda: self._plan.num_waiting_jobs or self._stopping)
            if self._stopping:
                return None
            step = self._plan.take(self._max_step_tokens)
            assert step is not None
            self._begin(step)
            return step

    def _next_urgent(self) -> Step | None:
        with self._changed:
            step = None if self._stopping else self._plan.take_urgent()
            if step is not None:
                self._begin(step)
            return step

    def _begin(self, step: Step) -> None:
        """Needs the lock."""
        jobs = list(dict.fromkeys(job for job, _ in step.members))
        self._running.append(jobs)
        now = time.perf_counter()
        for job in jobs:
            job.started_at = job.started_at or now

    def _run(self, step: Step) -> None:
        started = self._resumed_at = time.perf_counter()
        self._nested_s = 0.0
        is_long = step.num_tokens > _LONG_STEP * self._plan.max_urgent_tokens > 0
        is_done = self._compute(step, self._pause if is_long else None)
        now = time.perf_counter()
        self._share.earn(now - self._resumed_at)
        self._on_step(step, now - started - self._nested_s, is_done)

    def _pause(self) -> None:
        """Between two layers of a long step."""
        now = time.perf_counter()
        self._share.earn(now - self._resumed_at)
        self._resumed_at = now
        if not self._plan.has_urgent or not self._share.may_begin:
            return
        step = self._next_urgent()
        if step is None:
            return
        self.num_yields += 1
        is_done = self._compute(step, None)
        self._resumed_at = time.perf_counter()
        taken = self._resumed_at - now
        self._share.spend(taken)
        self._nested_s += taken
        self._on_step(step, taken, is_done)

    def _compute(self, step: Step, pause: Pause | None) -> bool:
        """Whether the step gave rows; its jobs have them, or their error."""
        payloads = [job.payloads[index] for job, index in step.members]
        try:
            rows = self._run_step(step.group, payloads, pause)
            if len(rows) != len(payloads):  # no assert: it must hold under `python -O` too
                raise ValueError(f"{len(rows)} rows for {len(payloads)} sequences")
        except Exception as error:
            log.exception("a step of %d sequences failed", len(payloads))
            self._fail_step(error)
            return False
        with self._changed:
            for (job, index), row in zip(step.members, rows, strict=True):
                job.set_row(index, row)
            for job in self._running.pop():
                if job.num_missing == 0:
                    self._end(job, None)
            self.num_steps += 1
            self._changed.notify_all()
        return True

    def _fail_step(self, cause: Exception) -> None:
        """The innermost one that runs."""
        failure = StepFailed("this step's forward failed")
        failure.__cause__ = cause
        with self._changed:
            for job in self._running.pop():
                self._end(job, failure)
            self._changed.notify_all()

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            self._closed_because = self._closed_because or str(error)
            for job in self._open_jobs():
                self._end(job, error)
            self._running.clear()
            self._changed.notify_all()

    def _open_jobs(self) -> list[Job]:
        open_jobs = dict.fromkeys(
            [*self._plan.owners(), *(job for jobs in self._running for job in jobs)]
        )
        return [job for job in open_jobs if not job.ended]

    def _end(self, job: Job, error: Exception | None) -> None:
        """End a job once; later calls do nothing. Needs the lock."""
        if job.ended:
            return
        if job.claim is not None:
            self._plan.withdraw(job.claim)
            job.claim = None  # job and claim name each other: do not leave that to the collector
        job.end(error)
        self._changed.notify_all()
