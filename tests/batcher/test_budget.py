"""What the step budget settles on, by synthetic rates; it is never told a clock's time."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies

from batcher.budget import CANDIDATES, CPU_CANDIDATES, StepBudget

Curve = Callable[[int], float]  # tokens per second at a budget


def flat_from(budget: int) -> Curve:
    return lambda tokens: 1000.0 * min(1.0, tokens / budget)


def peaked_at(budget: int) -> Curve:
    return lambda tokens: 1000.0 * 0.85 ** abs(math.log2(tokens / budget))


def fixed_part(fixed_s: float, token_s: float) -> Curve:
    return lambda tokens: tokens / (fixed_s + token_s * tokens)


def run_full_steps(
    budget: StepBudget, rate: Curve, num_steps: int, noise: float = 0.0, seed: int = 0
) -> list[int]:
    """The budgets of steps that came out full, each at its rate give or take the noise."""
    rng = random.Random(seed)
    given_budgets = []
    for _ in range(num_steps):
        tokens = budget.next("m")
        seconds = tokens / rate(tokens) * max(0.1, rng.gauss(1.0, noise))
        budget.observe("m", tokens, tokens, seconds, was_full=True)
        given_budgets.append(tokens)
    return given_budgets


def settle(budget: StepBudget, rate: Curve) -> int | None:
    for _ in range(2000):
        if budget.settled("m"):
            break
        run_full_steps(budget, rate, 1)
    return budget.settled("m")


def test_it_begins_between_short_and_long_steps() -> None:
    budget = StepBudget()
    a_round = [512, 1024, 2048, 512, 512, 1024, 512]
    assert run_full_steps(budget, flat_from(512), 14) == a_round * 2
    assert budget.settled("m") is None


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [
        pytest.param(flat_from(1), 128, id="every step as fast as any"),
        pytest.param(flat_from(256), 256, id="flat from 256"),
        pytest.param(flat_from(512), 512, id="flat from 512"),
        pytest.param(flat_from(1024), 1024, id="flat from 1,024"),
        pytest.param(flat_from(4096), 4096, id="rises to 4,096"),
        pytest.param(flat_from(100_000), 8192, id="rises for ever"),
        *(pytest.param(peaked_at(peak), peak, id=f"peaked at {peak}") for peak in CANDIDATES),
        pytest.param(lambda tokens: 1000 - tokens / 100, 128, id="falls slowly"),
        pytest.param(fixed_part(0.2, 0.006), 1024, id="bge-m3 on two cores"),
        pytest.param(fixed_part(0.002, 0.00037), 256, id="bge-small on two cores"),
    ],
)
def test_it_settles_on_the_smallest_within_three_percent_of_the_best(
    rate: Curve, wanted: int
) -> None:
    assert settle(StepBudget(), rate) == wanted


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rate", [flat_from(512), flat_from(4096), peaked_at(1024)])
def test_noise_of_ten_percent_costs_little(rate: Curve, seed: int) -> None:
    budget = StepBudget()
    run_full_steps(budget, rate, 100, noise=0.1, seed=seed)
    given_budgets = run_full_steps(budget, rate, 5000, noise=0.1, seed=seed + 1000)
    best = max(rate(candidate) for candidate in CANDIDATES)
    seconds = sum(tokens / rate(tokens) for tokens in given_budgets)
    assert sum(given_budgets) / seconds > 0.93 * best


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("wanted", [512, 1024, 2048])
def test_a_machine_that_is_half_as_fast_for_a_while_does_not_mislead_it(
    wanted: int, seed: int
) -> None:
    """Whatever it computes in that while: only what ran next to it is compared with it."""
    rng = random.Random(seed)
    budget = StepBudget(CPU_CANDIDATES)
    speed, until, now = 1.0, 0.0, 0.0
    for _ in range(2000):
        if budget.settled("m"):
            break
        if now >= until:
            speed, until = rng.uniform(0.5, 1.0), now + rng.expovariate(1 / 20)
        tokens = budget.next("m")
        seconds = tokens / peaked_at(wanted)(tokens) / speed * max(0.5, rng.gauss(1.0, 0.05))
        budget.observe("m", tokens, tokens, seconds, was_full=True)
        now += seconds
    assert budget.settled("m") == wanted


@pytest.mark.parametrize("seed", range(20))
def test_steps_that_vary_by_a_seventh_do_not_hide_a_gain_of_an_eighth(seed: int) -> None:
    """bge-small's rates on two cores, as measured."""
    shares = dict(zip(CPU_CANDIDATES, (0.60, 0.76, 0.935, 1.0, 1.13), strict=True))
    budget = StepBudget(CPU_CANDIDATES)
    run_full_steps(budget, lambda tokens: 1000 * shares[tokens], 300, noise=0.15, seed=seed)
    assert budget.settled("m") == 2048


@pytest.mark.parametrize(("before", "after"), [(512, 2048), (4096, 256), (128, 8192)])
def test_it_follows_a_change(before: int, after: int) -> None:
    budget = StepBudget()
    assert settle(budget, peaked_at(before)) == before
    run_full_steps(budget, peaked_at(after), 4000)
    assert budget.settled("m") == after


def test_the_whole_machine_getting_slower_changes_nothing() -> None:
    budget = StepBudget()
    settle(budget, flat_from(512))
    run_full_steps(budget, lambda tokens: flat_from(512)(tokens) / 3, 2000)
    assert budget.settled("m") == 512


def test_the_neighbours_of_a_settled_budget_are_tried_rarely() -> None:
    budget = StepBudget()
    settle(budget, peaked_at(1024))
    given_budgets = run_full_steps(budget, peaked_at(1024), 20_000)
    others = [tokens for tokens in given_budgets if tokens != 1024]
    assert set(others) == {512, 2048}
    assert len(others) / len(given_budgets) < 1 / 20


@pytest.mark.parametrize(
    ("share", "was_full"),
    [
        pytest.param(1.0, False, id="nothing more waited"),
        pytest.param(0.5, True, id="a long text did not fit beside it"),
        pytest.param(3.0, True, id="one text over the budget, alone"),
    ],
)
def test_steps_that_say_nothing_of_their_budget_do_not_count(share: float, was_full: bool) -> None:
    """Such steps come twice as fast as full ones at any budget: the choice stays."""
    budget, other = StepBudget(), StepBudget()
    for _ in range(100):
        tokens = budget.next("m")
        budget.observe("m", tokens, int(tokens * share), 1e-6, was_full)
        run_full_steps(budget, flat_from(1024), 1)
        run_full_steps(other, flat_from(1024), 1)
    assert budget.settled("m") == other.settled("m") == 1024


def test_a_candidate_that_never_comes_out_full_is_given_up() -> None:
    """All texts have 480 tokens: none is within 256, and 512 holds one."""
    budget = StepBudget()
    given_budgets = []
    for _ in range(500):
        tokens = budget.next("m")
        given_budgets.append(tokens)
        num_tokens = max(1, tokens // 480) * 480
        budget.observe("m", tokens, num_tokens, num_tokens / 1000, was_full=True)
    assert budget.settled("m") == 512
    assert given_budgets.count(256) == 15


def test_with_no_full_step_ever_it_stays_in_the_middle() -> None:
    budget = StepBudget()
    for _ in range(100):
        budget.observe("m", budget.next("m"), 1, 0.1, was_full=True)
    assert budget.settled("m") == 1024


def test_idle_times_do_not_move_it() -> None:
    budget = StepBudget()
    for _ in range(100):
        assert budget.next("m") == 512
        budget.observe("m", 512, 500, 0.1, was_full=False)


def test_a_budget_that_memory_does_not_hold_is_asked_for_once() -> None:
    budget = StepBudget()
    given_budgets = []
    for _ in range(200):
        tokens = budget.next("m")
        given_budgets.append(tokens)
        seconds = math.inf if tokens > 2048 else tokens / flat_from(100_000)(tokens)
        budget.observe("m", tokens, tokens, seconds, was_full=True)
    assert budget.settled("m") == 2048
    assert (given_budgets.count(4096), given_budgets.count(8192)) == (1, 0)


@pytest.mark.parametrize("fits", CANDIDATES)
def test_memory_that_holds_less_from_the_start_is_found(fits: int) -> None:
    budget = StepBudget()
    given_budgets = run_in_memory(budget, fits, 3000)
    assert budget.settled("m") == fits
    assert sum(tokens > fits for tokens in given_budgets) <= 4


@pytest.mark.parametrize("fits", CANDIDATES[:-1])
def test_memory_that_others_take_away_is_noticed_at_once(fits: int) -> None:
    budget = StepBudget()
    assert settle(budget, flat_from(100_000)) == 8192
    given_budgets = run_in_memory(budget, fits, 500)
    assert budget.settled("m") == fits
    assert sum(tokens > fits for tokens in given_budgets) <= len(CANDIDATES)


def run_in_memory(budget: StepBudget, fits: int, num_steps: int) -> list[int]:
    """Longer steps would be better, were there memory for them; until it has settled."""
    given_budgets: list[int] = []
    for _ in range(num_steps):
        tokens = budget.next("m")
        given_budgets.append(tokens)
        seconds = math.inf if tokens > fits else tokens / flat_from(100_000)(tokens)
        budget.observe("m", tokens, tokens, seconds, was_full=True)
        if budget.settled("m"):
            break
    return given_budgets


def test_a_long_text_that_memory_does_not_hold_says_nothing_of_the_budget() -> None:
    budget = StepBudget()
    settle(budget, peaked_at(1024))
    budget.observe("m", 1024, 8000, math.inf, was_full=True)
    assert budget.settled("m") == 1024


def test_groups_are_apart() -> None:
    budget = StepBudget()
    settle(budget, peaked_at(128))
    assert (budget.next("m"), budget.next("other")) == (128, 512)


@pytest.mark.parametrize("fixed", [1, 1000, 1024])
def test_one_candidate_is_a_fixed_budget(fixed: int) -> None:
    budget = StepBudget((fixed,))
    assert set(run_full_steps(budget, peaked_at(64), 2000)) == {fixed}
    assert budget.settled("m") == fixed


@given(
    candidates=strategies.sets(strategies.sampled_from(CANDIDATES), min_size=1),
    told=strategies.lists(
        strategies.tuples(
            strategies.sampled_from(["m", "other"]),
            strategies.one_of(strategies.none(), strategies.integers(1, 10_000)),
            strategies.floats(0.0, 2.0),
            strategies.floats(0.0, math.inf),
            strategies.booleans(),
        ),
        max_size=300,
    ),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_whatever_it_is_told_it_gives_its_candidates_alone(
    candidates: set[int], told: list[tuple[str, int | None, float, float, bool]]
) -> None:
    budget = StepBudget(sorted(candidates))
    for group, asked, share, seconds, was_full in told:
        tokens = budget.next(group)
        assert tokens in candidates
        num_tokens = int(share * tokens)
        budget.observe(group, asked or tokens, num_tokens, seconds, was_full)
        assert budget.settled(group) in {None, *candidates}


@given(
    peak=strategies.integers(0, len(CANDIDATES) - 1),
    falls=strategies.lists(strategies.floats(0.5, 0.999), min_size=7, max_size=7),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_on_any_curve_with_one_peak_it_is_the_smallest_within_three_percent_of_it(
    peak: int, falls: list[float]
) -> None:
    shares = [1.0] * len(CANDIDATES)
    for place in range(peak + 1, len(CANDIDATES)):
        shares[place] = shares[place - 1] * falls[place]
    for place in reversed(range(peak)):
        shares[place] = shares[place + 1] * falls[place]
    rate = {budget: 1000 * share for budget, share in zip(CANDIDATES, shares, strict=True)}
    chosen = settle(StepBudget(), rate.__getitem__)
    good = [budget for budget in CANDIDATES if rate[budget] >= 970]
    assert chosen in good
    assert chosen == good[0] or rate[chosen // 2] < 970.001
