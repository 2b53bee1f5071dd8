"""Whatever comes, crowds of urgent jobs included, nobody's next sequence waits for ever."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from batcher.scheduler import Batch, Claim, Scheduler

BUDGET = 24  # a batch's; no sequence costs more


class Sent(NamedTuple):
    """A job that somebody sends: its model and what its sequences cost."""

    group: int
    costs: Sequence[int]


class People:
    """Each has one job in the scheduler at a time; its next one comes when all of that is taken."""

    def __init__(self, limit: int, habits: Sequence[Sequence[Sent]]) -> None:
        self.scheduler = Scheduler(limit)
        self.habits = [cycle(jobs) for jobs in habits]
        self.claims: dict[int, Claim] = {}
        self.waited = [0] * len(habits)  # tokens of others' since the next sequence is the next
        self.num_urgent = self.num_crowds = 0
        for person in range(len(habits)):
            self.come(person)

    def come(self, person: int) -> None:
        job = next(self.habits[person])
        self.claims[person] = self.scheduler.add(person, job.group, job.costs)
        self.waited[person] = 0

    def take_urgent(self) -> None:
        if batch := self.scheduler.take_urgent():
            self.num_urgent += 1
            self.return_from(batch)

    def take(self) -> None:
        """By their tags."""
        is_long = self.scheduler.num_bulk_tokens > self.scheduler.max_short_tokens
        batch = self.scheduler.take(BUDGET)
        assert batch is not None
        self.num_crowds += is_long and any(self.claims[p].is_urgent for p, _ in batch.members)
        for person in self.claims:
            self.waited[person] += batch.num_tokens
        for person in {person for person, _ in batch.members}:
            self.waited[person] = 0
        self.return_from(batch)
        self.check()

    def return_from(self, batch: Batch) -> None:
        for person in {person for person, _ in batch.members}:
            if self.claims[person].withdrawn:
                self.come(person)

    def check(self) -> None:
        """Others get as much as it needs itself, and two batches more: their tags are behind by one
        at most, as a batch of one model goes on past another's, and each goes beyond by one."""
        for person, claim in self.claims.items():
            own = claim.costs[claim.num_taken]
            if not claim.is_urgent:
                assert self.waited[person] <= len(self.claims) * (own + 2 * BUDGET)


JOB = st.builds(
    Sent,
    st.integers(0, 2),
    st.lists(st.integers(1, 3), min_size=1, max_size=2)
    | st.lists(st.integers(1, BUDGET), min_size=1, max_size=30),
)
HABITS = st.lists(st.lists(JOB, min_size=1, max_size=3), min_size=1, max_size=12)
CROWD = [
    [Sent(0, [24] * 30)],
    [Sent(1, [5] * 60)],
    *[[Sent(number % 2, [2])] for number in range(9)],
]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from([0, 2, 6]), HABITS, st.lists(st.integers(0, 4), min_size=1, max_size=8))
@example(2, CROWD, [0])
@example(2, CROWD, [2])
def test_no_bulk_job_waits_for_more_than_a_fair_share_of_the_others(
    limit: int, habits: list[list[Sent]], urgent_between: list[int]
) -> None:
    people = People(limit, habits)
    for _, num_urgent in zip(range(200), cycle(urgent_between), strict=False):
        for _ in range(num_urgent):
            people.take_urgent()
        people.take()


def test_crowds_and_urgent_batches_were_among_these() -> None:
    people = People(2, CROWD)
    for _ in range(100):
        people.take()
    assert people.num_crowds
    for _ in range(100):
        people.take_urgent()
        people.take()
    assert people.num_urgent
