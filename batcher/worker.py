"""A worker: the one compute thread of one device.

It takes a batch from the scheduler, runs it, and hands every row to its job. There is no timer: a
batch is whatever waits when the worker is free. A long batch calls `preempt` between the model's
layers; an urgent job that has come meanwhile runs there and then, nested, one level deep, for less
than half of the time (`UrgentShare`). It knows no tensor and no model: `run_batch` is given to it.
Invariant: every job that `submit` accepts ends exactly once, with rows, an error, or by `cancel`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from batcher.batches import (
    BatchRunner,
    Preempt,
    RunBatch,
    RunningBatch,
    UrgentShare,
    is_memory_error,
)
from batcher.jobs import Job, OpenJobs
from batcher.scheduler import Batch, Scheduler

log = logging.getLogger("embedding.worker")

OnBatch = Callable[[Batch, float, bool], None]  # the batch, its seconds, whether it gave rows


class WorkerClosed(Exception):
    """The worker takes no more jobs: it is draining, stopped or dead. The text says which."""


class Worker:
    """`run_batch(group, payloads, preempt)` returns one row per payload, in order. It runs on this
    thread and calls `preempt`, unless that is None, wherever it can be interrupted.

    `max_urgent_tokens` is the scheduler's; with 0 no batch is preempted. `on_start` runs first on
    the thread (OpenMP has a thread count per thread), and `on_batch` after each batch.
    """

    def __init__(
        self,
        run_batch: RunBatch,
        max_batch_tokens: int,
        *,
        max_urgent_tokens: int = 0,
        name: str = "worker",
        on_start: Callable[[], None] = lambda: None,
        on_batch: OnBatch = lambda batch, seconds, is_done: None,
        is_out_of_memory: Callable[[BaseException], bool] = is_memory_error,
        free: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = name
        self._on_start = on_start
        self._on_batch = on_batch
        self._runner = BatchRunner(run_batch, is_out_of_memory, free)
        self._max_batch_tokens = max_batch_tokens
        self.max_urgent_tokens = min(max_urgent_tokens, max_batch_tokens)
        self._scheduler = Scheduler(self.max_urgent_tokens)
        self._jobs = OpenJobs(self._scheduler)
        self._share = UrgentShare()
        self._changed = threading.Condition()
        self._running: list[RunningBatch] = []  # the batch that runs, and the one nested in it
        self._closed_because = ""
        self._stopping = False
        self.num_batches = self.num_cancelled = self.num_preemptions = 0
        self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._main, name=self._name, daemon=True)
        thread.start()
        self._thread = thread

    def revive(self) -> None:
        """Start a new thread after the old one has died; its jobs have failed.

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
    def is_stopping(self) -> bool:
        """Whether it was told to stop, so that its end is no death."""
        return self._stopping

    @property
    def running_s(self) -> float:
        """For how long the current batch has been running; 0 when none is."""
        running = self._running[:1]  # a copy: the thread may empty the list meanwhile
        return time.perf_counter() - running[0].started_at if running else 0.0

    @property
    def num_waiting_jobs(self) -> int:
        return self._scheduler.num_waiting_jobs

    @property
    def num_waiting_tokens(self) -> int:
        return self._scheduler.num_waiting_tokens

    @property
    def num_shared(self) -> int:
        """Rows that an identical sequence gave."""
        return self._jobs.num_shared

    @property
    def num_splits(self) -> int:
        """Batches that ran again in halves for want of memory."""
        return self._runner.num_splits

    def submit(self, job: Job) -> None:
        """Queue a job. Raises WorkerClosed when no more work is taken."""
        with self._changed:
            if self._closed_because:
                raise WorkerClosed(self._closed_because)
            self._jobs.add(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Drop what of the job has not started. Rows that still come for it are thrown away."""
        with self._changed:
            self.num_cancelled += not job.ended
            self._jobs.end(job, None)
            self._changed.notify_all()

    def close(self, because: str) -> None:
        """Take no more jobs; those that were accepted go on."""
        with self._changed:
            self._closed_because = self._closed_because or because

    def stop(self, timeout_s: float, because: str = "the server is shutting down") -> bool:
        """Close, let accepted jobs finish for at most `timeout_s`, and fail the rest.

        True when the thread has ended; a batch that runs past the limit is abandoned with it.
        """
        self.close(because)
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs, timeout_s)
            self._jobs.end_all(WorkerClosed(because))
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            self._on_start()
            while self._run_next():
                pass
        except BaseException:
            log.exception("the worker died; its jobs fail")
            self._fail_all(WorkerClosed("the compute thread has died"))
            raise
        self._fail_all(WorkerClosed(self._closed_because))

    def _run_next(self) -> bool:
        """Wait for jobs, take a batch and run it. False when the worker stops."""
        running = None
        with self._changed:
            while running is None:
                while not self._scheduler.num_waiting_jobs and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return False
                batch = self._scheduler.take(self._max_batch_tokens, self._share.may_begin)
                if batch is not None:
                    running = self._jobs.begin(batch, time.perf_counter())
                del batch  # an idle worker must not keep its last jobs
            self._running.append(running)
        batch = running.batch
        is_long = batch.num_bulk_tokens > self._scheduler.max_short_tokens
        is_done = self._compute(running, self._preempt if is_long else None)
        now = time.perf_counter()
        own_s = now - running.started_at - running.nested_s
        self._on_batch(batch, own_s, is_done)
        if batch.is_urgent:
            self._share.spend(own_s)
        elif batch.num_bulk_tokens:
            self._share.earn(running.bulk_s(now))
        return True

    def _compute(self, running: RunningBatch, preempt: Preempt | None) -> bool:
        """Run a batch and give its jobs their rows or their error. True if there was a row."""
        outcomes = self._runner.run(running.batch.group, running.batch.members, preempt)
        with self._changed:
            has_row = self._jobs.hand_out(running, outcomes)
            self._running.remove(running)
            self.num_batches += 1
            self._changed.notify_all()
        return has_row

    def _preempt(self) -> None:
        """Called between two layers of a long batch. A fault of the worker's own must not pass for
        a failure of the forward: the jobs that were taken would never end."""
        try:
            self._run_urgent(self._running[0])
        except Exception as error:
            raise _Broken from error

    def _run_urgent(self, outer: RunningBatch) -> None:
        started = time.perf_counter()
        self._share.earn(outer.bulk_s(started))
        if not self._scheduler.has_urgent or not self._share.may_begin:
            return
        running = self._next_urgent()
        if running is None:
            return
        self.num_preemptions += 1
        is_done = self._compute(running, None)
        now = time.perf_counter()
        outer.resume(now, now - started)
        self._share.spend(now - started)
        self._on_batch(running.batch, now - started, is_done)

    def _next_urgent(self) -> RunningBatch | None:
        with self._changed:
            batch = None if self._stopping else self._scheduler.take_urgent()
            running = None if batch is None else self._jobs.begin(batch, time.perf_counter())
            if running is not None:
                self._running.append(running)
            return running

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            self._closed_because = self._closed_because or str(error)
            self._jobs.end_all(error)
            self._running.clear()
            self._changed.notify_all()


class _Broken(BaseException):
    """The worker itself has failed within a batch."""
