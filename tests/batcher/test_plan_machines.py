"""Any order of coming, leaving and taking: the plan against a slow scan, and with urgent jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from batcher.plan import Claim, Plan, Step


@dataclass(slots=True)
class NaiveJob:
    """What the plan should know of a job, kept the slow way."""

    name: int
    group: int
    costs: Sequence[int]
    finish: int
    num_taken: int = 0
    withdrawn: bool = False

    @property
    def waiting(self) -> Sequence[int]:
        return () if self.withdrawn else self.costs[self.num_taken :]


class PlanRules(RuleBasedStateMachine):
    """What both machines below do and hold."""

    jobs = Bundle[tuple[NaiveJob, Claim]]("jobs")

    def __init__(self, max_urgent_tokens: int) -> None:
        super().__init__()
        self.plan = Plan(max_urgent_tokens)
        self.naive: list[NaiveJob] = []

    @rule(job=jobs)
    def withdraw(self, job: tuple[NaiveJob, Claim]) -> None:
        job[0].withdrawn = True
        self.plan.withdraw(job[1])

    def waiting(self) -> list[NaiveJob]:
        return [job for job in self.naive if job.waiting]

    @invariant()
    def counters_match(self) -> None:
        waiting = self.waiting()
        assert self.plan.num_waiting_jobs == len(waiting)
        assert self.plan.num_waiting_tokens == sum(sum(job.waiting) for job in waiting)
        assert sorted(self.plan.owners()) == [job.name for job in waiting]


class PlanAgainstScan(PlanRules):
    """The plan's heaps against a scan over all jobs for the smallest tag."""

    def __init__(self) -> None:
        super().__init__(0)
        self.virtual_time = 0

    @rule(
        target=PlanRules.jobs,
        group=strategies.integers(0, 2),
        costs=strategies.lists(strategies.integers(1, 12), min_size=1, max_size=6),
    )
    def add(self, group: int, costs: list[int]) -> tuple[NaiveJob, Claim]:
        job = NaiveJob(len(self.naive), group, costs, self.virtual_time + costs[0])
        self.naive.append(job)
        return job, self.plan.add(job.name, group, costs)

    @rule(budget=strategies.integers(1, 24))
    def take(self, budget: int) -> None:
        step = self.plan.take(budget)
        expected = self.take_by_scan(budget)
        assert (None if step is None else step.members) == expected
        if step is not None:
            assert {self.naive[owner].group for owner, _ in step.members} == {step.group}
            costs = [self.naive[owner].costs[index] for owner, index in step.members]
            assert step.num_tokens == sum(costs)
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
        assert self.plan.take(16) is None
        assert all(job.withdrawn or job.num_taken == len(job.costs) for job in self.naive)


class PlanWithUrgentJobs(PlanRules):
    """Coming, leaving and both ways of taking in any order: each sequence once, or withdrawn."""

    LIMIT = 6

    def __init__(self) -> None:
        super().__init__(self.LIMIT)
        self.claims: list[Claim] = []

    @rule(
        target=PlanRules.jobs,
        group=strategies.integers(0, 2),
        costs=strategies.lists(strategies.integers(1, 6), min_size=1, max_size=3)
        | strategies.lists(strategies.integers(5, 20), min_size=1, max_size=6),
    )
    def add(self, group: int, costs: list[int]) -> tuple[NaiveJob, Claim]:
        job = NaiveJob(len(self.naive), group, costs, 0)
        claim = self.plan.add(job.name, group, costs)
        assert not claim.is_urgent or sum(costs) <= self.LIMIT
        self.naive.append(job)
        self.claims.append(claim)
        return job, claim

    @rule(budget=strategies.integers(1, 24))
    def take(self, budget: int) -> None:
        step = self.plan.take(budget)
        assert (step is None) == (not self.waiting())
        if step is not None:
            self.note(step)
            assert step.num_tokens <= budget or len(step.members) == 1

    @rule()
    def take_urgent(self) -> None:
        has_urgent = self.plan.has_urgent
        step = self.plan.take_urgent()
        assert has_urgent == (step is not None)
        if step is not None:
            assert all(self.claims[owner].is_urgent for owner, _ in step.members)
            assert step.num_tokens <= self.LIMIT
            self.note(step)

    def note(self, step: Step) -> None:
        for owner, index in step.members:
            job = self.naive[owner]
            assert not job.withdrawn
            assert job.num_taken == index, "every sequence once, in order"
            job.num_taken += 1
            assert job.group == step.group
        costs = [self.naive[owner].costs[index] for owner, index in step.members]
        assert step.num_tokens == sum(costs)

    @invariant()
    def bulk_is_counted_apart(self) -> None:
        bulk = [job for job in self.waiting() if not self.claims[job.name].is_urgent]
        assert self.plan.num_bulk_tokens == sum(sum(job.waiting) for job in bulk)
        assert self.plan._num_bulk_jobs == len(bulk)

    def teardown(self) -> None:
        """Both ways in turn, as a lane whose share allows it, take all there is."""
        while self.waiting():
            self.take_urgent()
            self.take(16)
        assert self.plan.next_group is None
        assert not self.plan._queues


TestPlanWithUrgentJobs = PlanWithUrgentJobs.TestCase
TestPlanWithUrgentJobs.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True
)


TestPlanAgainstScan = PlanAgainstScan.TestCase
TestPlanAgainstScan.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True
)
