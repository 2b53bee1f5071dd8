"""The jobs of a lane that wait or run, and how each ends: once. Needs the lane's lock.

Invariant: every job that is added ends exactly once, with rows, an error, or by being cancelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batcher.flights import Flights
from batcher.job import Job
from batcher.plan import Plan
from batcher.steps import Member, StepFailed


class OpenJobs:
    """Beside the plan, which knows their places only."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._flights = Flights()
        self._open: dict[Job, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def num_shared(self) -> int:
        """Rows that an identical sequence gave."""
        return self._flights.num_shared

    def add(self, job: Job) -> None:
        job.claim = self._plan.add(job, job.group, job.costs, job.alone)
        self._flights.add(job)
        self._open[job] = None

    def begin(self, members: list[Member], may_ride: bool) -> list[Member]:
        """Those of a step's members that must be computed; `may_ride`: unless an equal runs."""
        return self._flights.begin(members, may_ride)

    def hand_out(self, members: Sequence[Member], outcomes: Sequence[Any]) -> None:
        """Rows and failures of what was computed, to all who wait for them."""
        for member, outcome in zip(members, outcomes, strict=True):
            if isinstance(outcome, StepFailed):
                for job, index in self._flights.failed(member):
                    if not job.ended and not job.has_row(index):
                        self.end(job, outcome.of(job.places[index]))
                continue
            for job, index in self._flights.done(member):
                if not job.ended and not job.has_row(index):
                    job.set_row(index, outcome)
                    if job.num_missing == 0:
                        self.end(job, None)

    def end(self, job: Job, error: Exception | None) -> None:
        """Later calls do nothing."""
        if job.ended:
            return
        if job.claim is not None:
            self._plan.withdraw(job.claim)
            job.claim = None  # job and claim name each other: do not leave that to the collector
        if job.num_missing:
            self._flights.drop(job)
        self._open.pop(job, None)
        job.end(error)

    def end_all(self, error: Exception) -> None:
        """Nothing runs any more that could give a row."""
        for job in list(self._open):
            self.end(job, error)
        self._flights = Flights(self.num_shared)
