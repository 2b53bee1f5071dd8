"""Short jobs can be taken whole, ahead of the others, and are counted apart from bulk."""

from __future__ import annotations

import pytest

from batcher.plan import _CROWD, Plan, Step

LIMIT = 8


def members(step: Step | None) -> list[str]:
    return [] if step is None else [f"{owner}{index}" for owner, index in step.members]


@pytest.fixture
def plan() -> Plan:
    return Plan(LIMIT)


def test_only_whole_jobs_of_few_tokens_are_urgent(plan: Plan) -> None:
    plan.add("bulk", "g", [30, 4])
    assert plan.take_urgent() is None
    plan.add("a", "g", [4, 4])
    assert members(plan.take_urgent()) == ["a0", "a1"]
    assert plan.take_urgent() is None
    assert members(plan.take(100)) == ["bulk0", "bulk1"]


def test_the_rest_of_a_bulk_job_is_not_urgent(plan: Plan) -> None:
    plan.add("bulk", "g", [8, 4])
    plan.take(8)
    assert plan.num_waiting_tokens == 4
    assert plan.take_urgent() is None


def test_several_share_a_step_up_to_the_limit_and_one_group(plan: Plan) -> None:
    for name, group in (("a", "g"), ("b", "g"), ("c", "g"), ("d", "h")):
        plan.add(name, group, [4])
    assert members(plan.take_urgent()) == ["a0", "b0"]
    step = plan.take_urgent()
    assert members(step) == ["c0"]
    assert members(plan.take_urgent()) == ["d0"]
    assert not plan.has_urgent


def test_what_was_taken_or_withdrawn_is_not_taken_again(plan: Plan) -> None:
    claim = plan.add("gone", "g", [2])
    plan.add("taken", "g", [2])
    plan.add("half", "g", [2, 2])
    plan.withdraw(claim)
    assert members(plan.take(4)) == ["taken0", "half0"]
    assert members(plan.take_urgent()) == ["half1"]
    assert plan.take_urgent() is None
    assert plan.take(4) is None


def test_bulk_tokens_are_counted_apart(plan: Plan) -> None:
    plan.add("a", "g", [4])
    claim = plan.add("bulk", "g", [5, 5, 5])
    assert (plan.num_waiting_tokens, plan.num_bulk_tokens) == (19, 15)
    step = plan.take(9)
    assert step is not None
    assert (step.num_tokens, step.num_bulk_tokens) == (9, 5)
    assert plan.num_bulk_tokens == 10
    plan.withdraw(claim)
    assert (plan.num_waiting_tokens, plan.num_bulk_tokens) == (0, 0)


def test_urgent_jobs_leave_no_trace(plan: Plan) -> None:
    for number in range(1000):
        plan.add(number, "g", [3])
        if number % 2:
            plan.take(100)
    plan.take(100)
    plan.add("last", "g", [3])
    assert len(plan._queues["g"].urgent) == 1
    assert plan.num_waiting_jobs == 1


LONG = [9] * 10  # bulk that makes a long step


def test_a_few_urgent_jobs_do_not_ride_in_a_long_step(plan: Plan) -> None:
    plan.add("bulk", "g", LONG)
    for number in range(3):
        plan.add(f"q{number}-", "g", [2])
    plan.add("other", "h", [2])
    step = plan.take(50)
    assert members(step) == [f"bulk{i}" for i in range(5)]
    assert step is not None
    assert step.is_full
    assert members(plan.take_urgent()) == ["q0-0", "q1-0", "q2-0"]
    assert members(plan.take_urgent()) == ["other0"]


def test_a_step_is_not_full_because_of_urgent_jobs_left_apart(plan: Plan) -> None:
    plan.add("bulk", "g", LONG[:2])
    plan.add("q", "g", [2])
    step = plan.take(50)
    assert members(step) == ["bulk0", "bulk1"]
    assert step is not None
    assert not step.is_full
    step = plan.take(50)  # no bulk waits now: nothing to be left apart from
    assert members(step) == ["q0"]


def test_a_crowd_of_urgent_jobs_goes_by_its_tags(plan: Plan) -> None:
    plan.add("bulk", "g", LONG)
    for number in range(_CROWD + 1):
        plan.add(f"q{number}-", "g", [LIMIT])
    step = plan.take(LIMIT * 4)
    assert members(step) == [f"q{number}-0" for number in range(4)]
    assert len(members(plan.take(9))) == 1  # few enough now
    assert plan.num_bulk_tokens == sum(LONG) - 9


def is_urgent(plan: Plan, num_tokens: int) -> bool:
    claim = plan.add("tried", "other", [num_tokens])
    plan.withdraw(claim)
    return claim.is_urgent


def test_urgent_is_what_is_far_shorter_than_the_bulk_that_waits(plan: Plan) -> None:
    for number in range(3):
        plan.add(f"bulk{number}-", "g", [9 + number])  # 10 on average
    assert is_urgent(plan, 2)
    assert not is_urgent(plan, 3)


def test_or_than_the_bulk_of_the_step_that_runs(plan: Plan) -> None:
    plan.add("long", "g", [100])
    plan.take(50)
    plan.add("waits", "g", [10])
    assert is_urgent(plan, LIMIT)
    assert not is_urgent(plan, LIMIT + 1)
    plan.take(50)  # now the short one runs, and nothing waits
    assert is_urgent(plan, 2)
    assert not is_urgent(plan, 3)


def test_without_any_bulk_the_limit_alone_counts(plan: Plan) -> None:
    assert is_urgent(plan, LIMIT)
    assert not is_urgent(plan, LIMIT + 1)


def test_a_jobs_last_texts_count_as_the_whole_job_while_they_run(plan: Plan) -> None:
    plan.add("bulk", "g", [10] * 10)
    for _ in range(5):
        plan.take(20)
    assert plan.num_waiting_jobs == 0
    assert is_urgent(plan, LIMIT)


def test_one_text_after_another_among_its_like_is_never_urgent(plan: Plan) -> None:
    lengths = [LIMIT + 1, 5, 7, 6, 8, 4, 3]
    for number in range(200):
        plan.add(number, "g", [lengths[number % len(lengths)]])
        if number > 20:
            step = plan.take(12)
            assert step is not None
            assert not plan.has_urgent


def test_a_short_bulk_step_takes_everybody_along(plan: Plan) -> None:
    plan.add("bulk", "g", [9])
    plan.add("q", "g", [2])
    assert members(plan.take(50)) == ["q0", "bulk0"]


def test_the_next_group_is_that_of_the_next_step(plan: Plan) -> None:
    plan.add("q", "h", [2])
    plan.add("bulk", "g", LONG)
    assert plan.next_group == "g"
    step = plan.take(50)
    assert step is not None
    assert step.group == "g"
    plan.take_urgent()
    plan.take(50)
    assert plan.next_group is None
    assert not plan._queues
