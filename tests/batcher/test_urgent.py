"""Short jobs can be taken whole, ahead of the others, and are counted apart from bulk."""

from __future__ import annotations

import pytest

from batcher.scheduler import _CROWD, Batch, Scheduler

LIMIT = 8


def members(batch: Batch | None) -> list[str]:
    return [] if batch is None else [f"{owner}{index}" for owner, index in batch.members]


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(LIMIT)


def test_only_whole_jobs_of_few_tokens_are_urgent(scheduler: Scheduler) -> None:
    scheduler.add("bulk", "g", [30, 4])
    assert scheduler.take_urgent() is None
    scheduler.add("a", "g", [4, 4])
    assert members(scheduler.take_urgent()) == ["a0", "a1"]
    assert scheduler.take_urgent() is None
    assert members(scheduler.take(100)) == ["bulk0", "bulk1"]


def test_the_rest_of_a_bulk_job_is_not_urgent(scheduler: Scheduler) -> None:
    scheduler.add("bulk", "g", [8, 4])
    scheduler.take(8)
    assert scheduler.num_waiting_tokens == 4
    assert scheduler.take_urgent() is None


def test_several_share_a_batch_up_to_the_limit_and_one_group(scheduler: Scheduler) -> None:
    for name, group in (("a", "g"), ("b", "g"), ("c", "g"), ("d", "h")):
        scheduler.add(name, group, [4])
    assert members(scheduler.take_urgent()) == ["a0", "b0"]
    batch = scheduler.take_urgent()
    assert members(batch) == ["c0"]
    assert members(scheduler.take_urgent()) == ["d0"]
    assert not scheduler.has_urgent


def test_what_was_taken_or_withdrawn_is_not_taken_again(scheduler: Scheduler) -> None:
    claim = scheduler.add("gone", "g", [2])
    scheduler.add("taken", "g", [2])
    scheduler.add("half", "g", [2, 2])
    scheduler.withdraw(claim)
    assert members(scheduler.take(4)) == ["taken0", "half0"]
    assert members(scheduler.take_urgent()) == ["half1"]
    assert scheduler.take_urgent() is None
    assert scheduler.take(4) is None


def test_bulk_tokens_are_counted_apart(scheduler: Scheduler) -> None:
    scheduler.add("a", "g", [4])
    claim = scheduler.add("bulk", "g", [5, 5, 5])
    assert (scheduler.num_waiting_tokens, scheduler.num_bulk_tokens) == (19, 15)
    batch = scheduler.take(9)
    assert batch is not None
    assert (batch.num_tokens, batch.num_bulk_tokens) == (9, 5)
    assert scheduler.num_bulk_tokens == 10
    scheduler.withdraw(claim)
    assert (scheduler.num_waiting_tokens, scheduler.num_bulk_tokens) == (0, 0)


def test_urgent_jobs_leave_no_trace(scheduler: Scheduler) -> None:
    for number in range(1000):
        scheduler.add(number, "g", [3])
        if number % 2:
            scheduler.take(100)
    scheduler.take(100)
    scheduler.add("last", "g", [3])
    assert len(scheduler._queues["g"].urgent) == 1
    assert scheduler.num_waiting_jobs == 1


LONG = [9] * 10  # bulk that makes a long batch


def test_a_few_urgent_jobs_do_not_ride_in_a_long_batch(scheduler: Scheduler) -> None:
    scheduler.add("bulk", "g", LONG)
    for number in range(3):
        scheduler.add(f"q{number}-", "g", [2])
    scheduler.add("other", "h", [2])
    assert members(scheduler.take(50)) == [f"bulk{i}" for i in range(5)]
    assert members(scheduler.take_urgent()) == ["q0-0", "q1-0", "q2-0"]
    assert members(scheduler.take_urgent()) == ["other0"]


def test_urgent_jobs_left_apart_are_taken_when_no_bulk_waits(scheduler: Scheduler) -> None:
    scheduler.add("bulk", "g", LONG[:2])
    scheduler.add("q", "g", [2])
    assert members(scheduler.take(50)) == ["bulk0", "bulk1"]
    assert members(scheduler.take(50)) == ["q0"], "no bulk waits now"


def test_a_crowd_of_urgent_jobs_goes_by_its_tags(scheduler: Scheduler) -> None:
    scheduler.add("bulk", "g", LONG)
    for number in range(_CROWD + 1):
        scheduler.add(f"q{number}-", "g", [LIMIT])
    batch = scheduler.take(LIMIT * 4)
    assert members(batch) == [f"q{number}-0" for number in range(4)]
    assert len(members(scheduler.take(9))) == 1  # few enough now
    assert scheduler.num_bulk_tokens == sum(LONG) - 9


def is_urgent(scheduler: Scheduler, num_tokens: int) -> bool:
    claim = scheduler.add("tried", "other", [num_tokens])
    scheduler.withdraw(claim)
    return claim.is_urgent


def test_urgent_is_what_is_far_shorter_than_the_bulk_that_waits(scheduler: Scheduler) -> None:
    for number in range(3):
        scheduler.add(f"bulk{number}-", "g", [9 + number])  # 10 on average
    assert is_urgent(scheduler, 2)
    assert not is_urgent(scheduler, 3)


def test_or_than_the_bulk_of_the_batch_that_runs(scheduler: Scheduler) -> None:
    scheduler.add("long", "g", [100])
    scheduler.take(50)
    scheduler.add("waits", "g", [10])
    assert is_urgent(scheduler, LIMIT)
    assert not is_urgent(scheduler, LIMIT + 1)
    scheduler.take(50)  # now the short one runs, and nothing waits
    assert is_urgent(scheduler, 2)
    assert not is_urgent(scheduler, 3)


def test_without_any_bulk_the_limit_alone_counts(scheduler: Scheduler) -> None:
    assert is_urgent(scheduler, LIMIT)
    assert not is_urgent(scheduler, LIMIT + 1)


def test_a_jobs_last_texts_count_as_the_whole_job_while_they_run(scheduler: Scheduler) -> None:
    scheduler.add("bulk", "g", [10] * 10)
    for _ in range(5):
        scheduler.take(20)
    assert scheduler.num_waiting_jobs == 0
    assert is_urgent(scheduler, LIMIT)


def test_one_text_after_another_among_its_like_is_never_urgent(scheduler: Scheduler) -> None:
    lengths = [LIMIT + 1, 5, 7, 6, 8, 4, 3]
    for number in range(200):
        scheduler.add(number, "g", [lengths[number % len(lengths)]])
        if number > 20:
            batch = scheduler.take(12)
            assert batch is not None
            assert not scheduler.has_urgent


def test_a_short_bulk_batch_takes_everybody_along(scheduler: Scheduler) -> None:
    scheduler.add("bulk", "g", [9])
    scheduler.add("q", "g", [2])
    assert members(scheduler.take(50)) == ["q0", "bulk0"]


def test_a_group_with_nothing_waiting_is_forgotten(scheduler: Scheduler) -> None:
    scheduler.add("q", "h", [2])
    scheduler.add("bulk", "g", LONG)
    batch = scheduler.take(50)
    assert batch is not None
    assert batch.group == "g"
    scheduler.take_urgent()
    scheduler.take(50)
    assert scheduler.take(50) is None
    assert not scheduler._queues


@pytest.mark.parametrize(
    ("bulk", "may_overtake", "first"),
    [
        pytest.param(LONG, True, "q0", id="before long work"),
        pytest.param(LONG, False, "bulk0", id="its share is spent"),
        pytest.param([16], True, "q0 bulk0", id="with short work"),
    ],
)
def test_urgent_jobs_overtake_long_work_while_they_may(
    scheduler: Scheduler, bulk: list[int], may_overtake: bool, first: str
) -> None:
    scheduler.add("bulk", "g", bulk)
    scheduler.add("q", "g", [2])
    batch = scheduler.take(18, may_overtake)
    assert batch is not None
    assert " ".join(members(batch)).startswith(first)
    assert batch.is_urgent == (first == "q0")
