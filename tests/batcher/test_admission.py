"""Who may come in, by tables; and by any sequence of comings, countings and goings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from batcher.admission import MAX_RETRY_S, Admission, Overloaded, Rate, Reservation


def admission_of(
    max_tokens: int = 100, max_requests: int = 10, rate: float = 0, max_urgent_tokens: int = 0
) -> Admission:
    """`rate` in tokens a second; 0: nothing is measured."""
    measured = Rate()
    if rate:
        measured.count(1000, 1000 / rate)
    return Admission(max_tokens, max_requests, measured, max_urgent_tokens)


def enter_all(admission: Admission, held: Sequence[int]) -> list[Reservation]:
    reservations = [admission.admit() for _ in held]
    for reservation, num_tokens in zip(reservations, held, strict=True):
        reservation.reserve(num_tokens)
    return reservations


def counts(admission: Admission) -> tuple[int, int, int]:
    return admission.num_requests, admission.num_reserving, admission.num_tokens


def test_a_job_over_the_limit_is_refused_and_the_next_comes_in_when_one_has_left() -> None:
    admission = admission_of(max_requests=2)
    first, _ = enter_all(admission, [0, 0])
    with pytest.raises(Overloaded) as refusal:
        admission.admit()
    assert str(refusal.value) == (
        "the queue is full: 2 requests are open, the limit is 2 (max_queue_requests)"
    )
    first.leave()
    first.leave()
    admission.admit()
    assert admission.num_requests == 2
    assert admission.num_refused == 1


# Tokens that others hold, those that come, and whether they may; of 100.
TOKENS = [
    ([], 1, True),
    ([], 100, True),
    ([], 101, True),  # alone: it could never run otherwise
    ([], 10_000, True),
    ([60], 40, True),
    ([60], 41, False),
    ([30, 30], 40, True),
    ([30, 30], 41, False),
    ([1], 100, False),
    ([0, 0], 10_000, True),  # nobody holds any yet
]


@pytest.mark.parametrize(("held", "wanted", "is_taken"), TOKENS)
def test_tokens_are_taken_whole_or_not_at_all(held: list[int], wanted: int, is_taken: bool) -> None:
    admission = admission_of(max_tokens=100)
    enter_all(admission, held)
    reservation = admission.admit()
    if is_taken:
        reservation.reserve(wanted)
        assert admission.num_tokens == sum(held) + wanted
        return
    with pytest.raises(Overloaded) as refusal:
        reservation.reserve(wanted)
    assert str(refusal.value) == (
        f"the queue is full: it holds {sum(held)} tokens and this request has {wanted} or more, "
        "the limit is 100 (max_queue_tokens)"
    )
    assert admission.num_tokens == sum(held)


@pytest.mark.parametrize("num_tokens", [100, 500])
def test_nobody_enters_while_all_tokens_are_held(num_tokens: int) -> None:
    admission = admission_of(max_tokens=100)
    (reservation,) = enter_all(admission, [num_tokens])
    with pytest.raises(Overloaded, match=rf"it holds {num_tokens} tokens, the limit is 100 \("):
        admission.admit()
    reservation.release()
    admission.admit()


def test_tokens_are_counted_as_they_come_and_may_turn_out_to_be_fewer() -> None:
    admission = admission_of(max_tokens=100)
    one, two = enter_all(admission, [0, 0])
    one.reserve(30)
    two.reserve(30)
    one.reserve(60)
    assert counts(admission) == (2, 2, 90)
    one.reserve(20)  # what its sequences share is computed once
    two.reserve(80)
    assert counts(admission) == (2, 2, 100)
    with pytest.raises(Overloaded):
        one.reserve(21)
    assert counts(admission) == (2, 1, 80), "a job that is refused holds nothing"


def fail(reservation: Reservation, admission: Admission) -> None:
    reservation.reserve(70)
    with admission.admit() as other:
        other.reserve(70)


def test_a_place_leaves_with_its_tokens_when_its_block_ends_or_raises() -> None:
    admission = admission_of()
    with admission.admit() as reservation:
        reservation.reserve(70)
        reservation.release()
        assert counts(admission) == (1, 0, 0)
    with pytest.raises(Overloaded), admission.admit() as reservation:
        fail(reservation, admission)
    assert counts(admission) == (0, 0, 0)


@pytest.mark.parametrize(
    ("rate", "held", "retry_after_s"),
    [(0, 0, 5), (0, 90, 5), (10, 0, 1), (10, 1, 1), (10, 90, 9), (10, 95, 10), (0.001, 95, 600)],
)
def test_who_is_refused_is_told_when_what_is_held_will_be_done(
    rate: float, held: int, retry_after_s: int
) -> None:
    admission = admission_of(max_requests=1, rate=rate)
    enter_all(admission, [held])
    with pytest.raises(Overloaded) as refusal:
        admission.admit()
    assert refusal.value.retry_after_s == admission.retry_after_s == retry_after_s <= MAX_RETRY_S


# Of ten tokens a second: tokens that others hold, one's own, its time, and whether it may.
IN_TIME = [
    ([], 10, 1.0, True),
    ([], 11, 1.0, False),
    ([], 10, -0.5, False),
    ([90], 5, 1.0, True),  # a tenth of a second each in turn: done after ten of its own
    ([90], 6, 1.0, False),
    ([30, 30, 30], 5, 2.0, True),
    ([30, 30, 30], 6, 2.0, False),
    ([1, 1, 1], 7, 1.0, True),  # all is done by then
    ([1, 1, 1], 8, 1.0, False),
    ([0, 0], 10, 1.0, True),  # jobs without tokens keep nobody waiting
]


@pytest.mark.parametrize(("held", "own", "within_s", "is_taken"), IN_TIME)
def test_what_cannot_be_done_in_time_is_refused(
    held: list[int], own: int, within_s: float, is_taken: bool
) -> None:
    admission = admission_of(rate=10)
    enter_all(admission, held)
    reservation = admission.admit()
    if is_taken:
        reservation.reserve(own, within_s)
        return
    with pytest.raises(Overloaded, match="cannot be done in time: it would take about"):
        reservation.reserve(own, within_s)
    assert admission.num_tokens == sum(held)


def test_nothing_is_refused_by_a_rate_that_nobody_has_measured() -> None:
    admission_of(max_tokens=10**9).admit().reserve(10**8, 0.001)


def test_who_is_refused_with_nobody_before_it_is_let_through_in_the_end() -> None:
    admission = admission_of(rate=1)  # of short texts alone: it can do much more
    with admission.admit() as reservation:
        for _ in range(3):
            with pytest.raises(Overloaded):
                reservation.reserve(80, 10.0)
        reservation.reserve(80, 10.0)


def test_who_is_refused_because_of_others_does_not_change_the_rate() -> None:
    admission = admission_of(rate=10)
    enter_all(admission, [50])
    for _ in range(20):
        with pytest.raises(Overloaded), admission.admit() as reservation:
            reservation.reserve(40, 1.0)


@given(
    batches=st.lists(
        st.tuples(st.integers(1, 10**6), st.floats(1e-6, 1e4)), min_size=1, max_size=40
    )
)
def test_the_rate_lies_between_the_slowest_batch_and_the_fastest(
    batches: list[tuple[int, float]],
) -> None:
    rate = Rate()
    for num_tokens, seconds in batches:
        rate.count(num_tokens, seconds)
    each = [seconds / num_tokens for num_tokens, seconds in batches]
    measured = rate.seconds_for(1)
    assert measured is not None
    assert min(each) * 0.999 <= measured <= max(each) * 1.001


def test_the_rate_follows_a_machine_that_has_become_slower() -> None:
    rate = Rate()
    for _ in range(1000):
        rate.count(1000, 1.0)
    for _ in range(60):  # a minute
        rate.count(100, 1.0)
    assert rate.seconds_for(100) == pytest.approx(1.0, rel=0.2)


# Others' tokens, own ones, the urgent limit, and seconds it takes at least at 100 tokens a second.
OVERTAKING = [
    ([3200] * 8, 20, 64, 0.2),  # a query beside an import: it goes before all of it
    ([3200] * 8, 20, 0, 1.8),  # unless nobody may
    ([3200] * 8, 80, 64, 7.2),
    ([3200, 60, 60], 64, 64, 1.84),  # it does not go before those that may go before others too
    ([30], 20, 64, 0.4),  # nor is it done later than by its share
]


@pytest.mark.parametrize(("held", "own", "max_urgent_tokens", "seconds"), OVERTAKING)
def test_who_may_overtake_is_refused_only_if_that_does_not_help(
    held: list[int], own: int, max_urgent_tokens: int, seconds: float
) -> None:
    admission = admission_of(10**6, rate=100, max_urgent_tokens=max_urgent_tokens)
    reservations = enter_all(admission, held)
    with pytest.raises(Overloaded, match=rf"it would take about {seconds} s, "):
        admission.admit().reserve(own, seconds * 0.99)
    admission.admit().reserve(own, seconds * 1.01)
    for reservation in reservations:
        reservation.leave()
    admission.admit().reserve(own, 2 * own / 100 * 1.01)


class Comings(RuleBasedStateMachine):
    """Any requests, in any order, that end in any way."""

    MAX_TOKENS, MAX_JOBS, MAX_URGENT = 50, 4, 8

    def __init__(self) -> None:
        super().__init__()
        self.rate = Rate()
        self.admission = Admission(self.MAX_TOKENS, self.MAX_JOBS, self.rate, self.MAX_URGENT)
        self.reservations: list[Reservation] = []

    @rule()
    def enter(self) -> None:
        is_full = len(self.reservations) == self.MAX_JOBS or self.num_held() >= self.MAX_TOKENS
        try:
            self.reservations.append(self.admission.admit())
        except Overloaded:
            assert is_full
        else:
            assert not is_full

    @precondition(lambda self: self.reservations)
    @rule(
        data=st.data(),
        num_tokens=st.integers(0, 80),
        within_s=st.none() | st.floats(-1, 20),
    )
    def hold(self, data: Any, num_tokens: int, within_s: float | None) -> None:
        reservation = data.draw(st.sampled_from(self.reservations))
        others = self.num_held() - reservation.num_tokens
        grows = num_tokens > reservation.num_tokens
        try:
            reservation.reserve(num_tokens, within_s)
        except Overloaded:
            assert reservation.num_tokens == 0
            assert 1 <= self.admission.retry_after_s <= MAX_RETRY_S
            assert within_s is not None or (others and others + num_tokens > self.MAX_TOKENS)
        else:
            assert reservation.num_tokens == num_tokens
            assert not grows or not others or others + num_tokens <= self.MAX_TOKENS

    @precondition(lambda self: self.reservations)
    @rule(data=st.data(), ends=st.sampled_from(["release", "leave"]))
    def end(self, data: Any, ends: str) -> None:
        reservation = data.draw(st.sampled_from(self.reservations))
        getattr(reservation, ends)()
        if ends == "leave":
            self.reservations.remove(reservation)

    @rule(num_tokens=st.integers(1, 100), seconds=st.floats(0.001, 10))
    def batch(self, num_tokens: int, seconds: float) -> None:
        self.rate.count(num_tokens, seconds)

    def num_held(self) -> int:
        return sum(reservation.num_tokens for reservation in self.reservations)

    @invariant()
    def never_more_than_the_limits(self) -> None:
        holding = [reservation for reservation in self.reservations if reservation.num_tokens]
        assert counts(self.admission) == (len(self.reservations), len(holding), self.num_held())
        urgent = [
            reservation for reservation in holding if reservation.num_tokens <= self.MAX_URGENT
        ]
        assert self.admission._num_urgent_tokens == sum(
            reservation.num_tokens for reservation in urgent
        )
        assert len(self.reservations) <= self.MAX_JOBS
        assert self.num_held() <= self.MAX_TOKENS or len(holding) == 1

    def teardown(self) -> None:
        for reservation in self.reservations:
            reservation.leave()
        assert counts(self.admission) == (0, 0, 0)


TestAnyComings = Comings.TestCase
TestAnyComings.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
