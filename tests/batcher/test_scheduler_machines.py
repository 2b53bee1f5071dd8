"""Any order of coming, leaving and taking: against a slow scan, and with urgent jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from batcher.scheduler import Batch, Claim, Scheduler
from tests.batcher.waiting import owners_of


@dataclass(slots=True)
class NaiveJob:
    """What the scheduler should know of a job, kept the slow way."""

    name: int
    group: int
    costs: Sequence[int]
    finish: int
    num_taken: int = 0
    withdrawn: bool = False

    @property
    def waiting(self) -> Sequence[int]:
        return () if self.withdrawn else self.costs[self.num_taken :]


class SchedulerRules(RuleBasedStateMachine):
    """What both machines below do and hold."""

    jobs = Bundle[tuple[NaiveJob, Claim]]("jobs")

    def __init__(self, max_urgent_tokens: int) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_urgent_tokens)
        self.naive: list[NaiveJob] = []

    @rule(job=jobs)
    def withdraw(self, job: tuple[NaiveJob, Claim]) -> None:
        job[0].withdrawn = True
        self.scheduler.withdraw(job[1])

    def waiting(self) -> list[NaiveJob]:
        return [job for job in self.naive if job.waiting]

    @invariant()
    def counters_match(self) -> None:
        waiting = self.waiting()
        assert self.scheduler.num_waiting_jobs == len(waiting)
        assert self.scheduler.num_waiting_tokens == sum(sum(job.waiting) for job in waiting)
        assert sorted(owners_of(self.scheduler)) == [job.name for job in waiting]


class SchedulerAgainstScan(SchedulerRules):
    """The scheduler's heaps against a scan over all jobs for the smallest tag."""

    def __init__(self) -> None:
        super().__init__(0)
        self.virtual_time = 0

    @rule(
        target=SchedulerRules.jobs,
        group=strategies.integers(0, 2),
        costs=strategies.lists(strategies.integers(1, 12), min_size=1, max_size=6),
    )
    def add(self, group: int, costs: list[int]) -> tuple[NaiveJob, Claim]:
        job = NaiveJob(len(self.naive), group, costs, self.virtual_time + costs[0])
        self.naive.append(job)
        return job, self.scheduler.add(job.name, group, costs)

    @rule(budget=strategies.integers(1, 24))
    def take(self, budget: int) -> None:
        batch = self.scheduler.take(budget)
        expected = self.take_by_scan(budget)
        assert (None if batch is None else batch.members) == expected
        if batch is not None:
            assert {self.naive[owner].group for owner, _ in batch.members} == {batch.group}
            costs = [self.naive[owner].costs[index] for owner, index in batch.members]
            assert batch.num_tokens == sum(costs)
            assert sum(costs) <= budget or len(costs) == 1

    def take_by_scan(self, budget: int) -> list[tuple[int, int]] | None:
        taken: list[tuple[int, int]] = []
        group: int | None = None
        while waiting := [job for job in self.naive if job.waiting and group in (None, job.group)]:
            head = min(waiting, key=lambda job: (job.finish, job.name))
            if taken and head.waiting[0] > budget:
                break
            group = head.group
            budget -= head.waiting[0]
            taken.append((head.name, head.num_taken))
            head.num_taken += 1
            self.virtual_time = max(self.virtual_time, head.finish)
            head.finish += head.waiting[0] if head.waiting else 0
        return taken or None

    def teardown(self) -> None:
        """Every sequence has been taken once, in order, or was withdrawn: the scan agreed."""
        while any(job.waiting for job in self.naive):
            self.take(16)
        assert self.scheduler.take(16) is None
        assert all(job.withdrawn or job.num_taken == len(job.costs) for job in self.naive)


class SchedulerWithUrgentJobs(SchedulerRules):
    """Coming, leaving and both ways of taking in any order: each sequence once, or withdrawn."""

    LIMIT = 6

    def __init__(self) -> None:
        super().__init__(self.LIMIT)
        self.claims: list[Claim] = []

    @rule(
        target=SchedulerRules.jobs,
        group=strategies.integers(0, 2),
        costs=strategies.lists(strategies.integers(1, 6), min_size=1, max_size=3)
        | strategies.lists(strategies.integers(5, 20), min_size=1, max_size=6),
    )
    def add(self, group: int, costs: list[int]) -> tuple[NaiveJob, Claim]:
        job = NaiveJob(len(self.naive), group, costs, 0)
        claim = self.scheduler.add(job.name, group, costs)
        assert not claim.is_urgent or sum(costs) <= self.LIMIT
        self.naive.append(job)
        self.claims.append(claim)
        return job, claim

    @rule(budget=strategies.integers(1, 24))
    def take(self, budget: int) -> None:
        batch = self.scheduler.take(budget)
        assert (batch is None) == (not self.waiting())
        if batch is not None:
            self.note(batch)
            assert batch.num_tokens <= budget or len(batch.members) == 1

    @rule()
    def take_urgent(self) -> None:
        has_urgent = self.scheduler.has_urgent
        batch = self.scheduler.take_urgent()
        assert has_urgent == (batch is not None)
        if batch is not None:
            assert all(self.claims[owner].is_urgent for owner, _ in batch.members)
            assert batch.num_tokens <= self.LIMIT
            self.note(batch)

    def note(self, batch: Batch) -> None:
        for owner, index in batch.members:
            job = self.naive[owner]
            assert not job.withdrawn
            assert job.num_taken == index, "every sequence once, in order"
            job.num_taken += 1
            assert job.group == batch.group
        costs = [self.naive[owner].costs[index] for owner, index in batch.members]
        assert batch.num_tokens == sum(costs)

    @invariant()
    def bulk_is_counted_apart(self) -> None:
        bulk = [job for job in self.waiting() if not self.claims[job.name].is_urgent]
        assert self.scheduler.num_bulk_tokens == sum(sum(job.waiting) for job in bulk)
        assert self.scheduler._num_bulk_jobs == len(bulk)

    def teardown(self) -> None:
        """Both ways in turn, as a worker whose share allows it, take all there is."""
        while self.waiting():
            self.take_urgent()
            self.take(16)
        assert self.scheduler.take(16) is None
        assert not self.scheduler._queues


TestSchedulerWithUrgentJobs = SchedulerWithUrgentJobs.TestCase
TestSchedulerWithUrgentJobs.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True
)


TestSchedulerAgainstScan = SchedulerAgainstScan.TestCase
TestSchedulerAgainstScan.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True
)
