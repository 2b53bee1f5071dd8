"""The jobs that wait or run, and how each ends; identical sequences are computed once.

A job is one request's sequences in the scheduler. Each sequence keeps its own turn there, so nobody
waits for another's: when one of several identical sequences has been computed, all have their row,
and the others are skipped when their turn comes. The worker's lock guards everything here.
Invariant: every job that is added ends exactly once, with rows, an error, or by being cancelled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from batcher.batches import BatchFailed, Member, RunningBatch
from batcher.scheduler import Batch, Claim, Scheduler

_Key = tuple[Hashable, Hashable]  # the group, and the sequence's own key


@dataclass(slots=True, eq=False)
class Job:
    """`payloads[i]` costs `costs[i]` tokens and becomes `rows[i]`. Times: perf_counter seconds.

    `alone` is as in `Scheduler.add`. Sequences of one group with equal `keys` have equal rows.
    `row_indices` are the numbers by which the caller counts the sequences, for its errors; by
    default 0, 1, 2, …. `on_end` is called once, on any thread.
    """

    group: Hashable
    payloads: Sequence[Any]
    costs: Sequence[int]
    alone: Sequence[int] | None = None
    keys: Sequence[Hashable] | None = None
    row_indices: Sequence[int] | None = None
    rows: list[Any] = field(default_factory=list)
    num_missing: int = 0
    on_end: Callable[[], None] = lambda: None
    claim: Claim | None = None
    error: Exception | None = None
    ended: bool = False
    queued_at: float = 0.0
    started_at: float = 0.0
    ended_at: float = 0.0


class Coalescer:
    """Identical sequences that wait or run for the same model. `num_shared` counts rows that were
    not computed again.

    Of one batch, only the first of identical sequences is computed, and the others ride along. A
    batch that is nested in a long one computes a sequence again that the long one is computing: it
    is urgent, and would wait for the end of the long one.
    Invariant: a sequence is registered until it has its row or its job has ended.
    """

    def __init__(self, num_shared: int = 0) -> None:
        self.num_shared = num_shared
        self._registered: dict[_Key, dict[Member, bool]] = {}  # whether each is being computed

    def __len__(self) -> int:
        return len(self._registered)

    def add(self, job: Job) -> None:
        """Register a job's sequences. A job without keys shares nothing."""
        for index, key in enumerate(job.keys or ()):
            self._registered.setdefault((job.group, key), {})[job, index] = False

    def begin(self, members: list[Member]) -> tuple[list[Member], dict[Member, list[Member]]]:
        """The members of a batch that must be computed, and those that ride along with each."""
        computed: list[Member] = []
        riders: dict[Member, list[Member]] = {}
        leaders: dict[_Key, Member] = {}
        for member in members:
            job, index = member
            if job.ended or job.rows[index] is not None:
                continue
            if job.keys is not None:
                key = (job.group, job.keys[index])
                leader = leaders.setdefault(key, member)
                if leader is not member:
                    riders.setdefault(leader, []).append(member)
                    continue
                self._registered[key][member] = True
            computed.append(member)
        return computed, riders

    def done(self, member: Member) -> Sequence[Member]:
        """Everybody who gets this member's row, itself included."""
        job, index = member
        if job.keys is None:
            return (member,)
        equals = self._registered.pop((job.group, job.keys[index]), {})
        for is_computed in equals.values():
            self.num_shared += not is_computed
        equals[member] = True  # its row may be here already, or its job may have ended
        return list(equals)

    def drop(self, job: Job) -> None:
        """Forget a job that has ended before all its rows came."""
        for index, key in enumerate(job.keys or ()):
            equals = self._registered.get((job.group, key))
            if equals is not None:
                equals.pop((job, index), None)
                if not equals:
                    del self._registered[job.group, key]


class OpenJobs:
    """The jobs of one worker. The scheduler knows only what they cost and when it is their turn."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._coalescer = Coalescer()
        self._open: dict[Job, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_shared(self) -> int:
        """Rows that an identical sequence gave."""
        return self._coalescer.num_shared

    def add(self, job: Job) -> None:
        """Queue a job that is new."""
        assert len(job.payloads) == len(job.costs)
        assert job.keys is None or len(job.keys) == len(job.payloads)
        job.rows = [None] * len(job.payloads)
        job.num_missing = len(job.payloads)
        job.queued_at = time.perf_counter()
        self._open[job] = None
        self._coalescer.add(job)
        job.claim = self._scheduler.add(job, job.group, job.costs, job.alone)

    def begin(self, batch: Batch, now: float) -> RunningBatch | None:
        """The part of a batch that must be computed; None when other batches do all of it."""
        for job, _ in batch.members:
            job.started_at = job.started_at or now
        members, riders = self._coalescer.begin(batch.members)
        if not members:
            return None
        if len(members) < len(batch.members):
            num_tokens = sum(job.costs[index] for job, index in members)
            num_bulk_tokens = min(batch.num_bulk_tokens, num_tokens)
            batch = Batch(batch.group, members, num_tokens, num_bulk_tokens, batch.is_urgent)
        return RunningBatch(batch, now, now, riders)

    def hand_out(self, running: RunningBatch, outcomes: Sequence[Any]) -> bool:
        """Give the rows and failures of a batch to all who wait for them. True if there was a row.

        Riders fail with their leader. Identical sequences that still wait are tried on their own.
        """
        has_row = False
        for member, outcome in zip(running.batch.members, outcomes, strict=True):
            if isinstance(outcome, BatchFailed):
                for job, index in (member, *running.riders.get(member, ())):
                    if job.rows[index] is None:
                        self.end(
                            job, outcome.of(job.row_indices[index] if job.row_indices else index)
                        )
                continue
            has_row = True
            for job, index in self._coalescer.done(member):
                if not job.ended and job.rows[index] is None:
                    job.rows[index] = outcome
                    job.num_missing -= 1
                    if job.num_missing == 0:
                        self.end(job, None)
        return has_row

    def end(self, job: Job, error: Exception | None) -> None:
        """End a job. Later calls do nothing."""
        if job.ended:
            return
        if job.claim is not None and not job.claim.withdrawn:
            self._scheduler.withdraw(job.claim)
        job.claim = None  # the two name each other: do not leave that to the garbage collector
        if job.num_missing:
            self._coalescer.drop(job)
        self._open.pop(job, None)
        job.ended = True
        job.error = error
        job.ended_at = time.perf_counter()
        job.started_at = job.started_at or job.ended_at  # identical sequences gave all its rows
        job.on_end()

    def end_all(self, error: Exception) -> None:
        """End every job, when no batch runs any more that could give a row."""
        for job in list(self._open):
            self.end(job, error)
        self._coalescer = Coalescer(self.num_shared)
