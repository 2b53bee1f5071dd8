"""The scheduler's policy by tables, without thread, loop or clock; and that nobody is overtaken."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from random import Random

import pytest

from batcher.scheduler import Batch, Claim, Scheduler
from tests.batcher.waiting import owners_of


def members(batch: Batch | None) -> list[str]:
    """`a0` is the first sequence of job a."""
    return [] if batch is None else [f"{owner}{index}" for owner, index in batch.members]


def all_batches(scheduler: Scheduler, budget: int) -> list[list[str]]:
    batches = []
    while batch := scheduler.take(budget):
        batches.append(members(batch))
    return batches


def add_all(scheduler: Scheduler, jobs: dict[str, list[int]]) -> dict[str, Claim]:
    """The group of job `g.a` is g; of job a it is the empty string."""
    return {
        name: scheduler.add(name, name.rpartition(".")[0], costs) for name, costs in jobs.items()
    }


@pytest.mark.parametrize(
    ("jobs", "budget", "batches"),
    [
        pytest.param({"a": [5]}, 9, ["a0"], id="one sequence"),
        pytest.param({"a": [1, 1, 1]}, 2, ["a0 a1", "a2"], id="the order within a job is kept"),
        pytest.param({"a": [3, 4, 1]}, 4, ["a0", "a1", "a2"], id="a later one never overtakes"),
        pytest.param(
            {"a": [1, 1, 1], "b": [1, 1, 1]},
            2,
            ["a0 b0", "a1 b1", "a2 b2"],
            id="two equal jobs interleave",
        ),
        pytest.param({"a": [2, 2], "b": [1]}, 9, ["b0 a0 a1"], id="the cheaper job goes first"),
        pytest.param(
            {"a": [4, 4], "b": [1] * 8},
            4,
            ["b0 b1 b2", "a0", "b3 b4 b5 b6", "a1", "b7"],
            id="fair in tokens, not in sequences",
        ),
        pytest.param({"a": [2, 2], "b": [2]}, 4, ["a0 b0", "a1"], id="a full budget is used"),
        pytest.param({"a": [3], "b": [4]}, 6, ["a0", "b0"], id="one token too many waits"),
        pytest.param({"a": [2, 9, 2]}, 4, ["a0", "a1", "a2"], id="an oversized one runs alone"),
        pytest.param({"b": [9], "a": [1, 1]}, 4, ["a0 a1", "b0"], id="an oversized job is last"),
        pytest.param({"a": [1, 1]}, 1, ["a0", "a1"], id="the smallest budget"),
        pytest.param(
            {"g.a": [1, 1, 1], "h.b": [1, 1, 1]},
            2,
            ["g.a0 g.a1", "h.b0 h.b1", "g.a2", "h.b2"],
            id="groups never mix and take turns",
        ),
        pytest.param(
            {"g.a": [4], "h.b": [1], "g.c": [2]},
            9,
            ["h.b0", "g.c0 g.a0"],
            id="the group whose head has the smallest tag goes first",
        ),
    ],
)
def test_batches_follow_the_tags(
    jobs: dict[str, list[int]], budget: int, batches: list[str]
) -> None:
    scheduler = Scheduler()
    add_all(scheduler, jobs)
    assert [" ".join(batch) for batch in all_batches(scheduler, budget)] == batches


def test_an_empty_scheduler_has_no_batch() -> None:
    assert Scheduler().take(8) is None


@pytest.mark.parametrize("costs", [[], [0], [1, -1]])
def test_a_job_without_cost_is_our_bug(costs: list[int]) -> None:
    with pytest.raises(AssertionError):
        Scheduler().add("a", "", costs)


@pytest.mark.parametrize("num_batches_before", [0, 1, 500])
def test_a_short_query_goes_before_the_rest_of_a_bulk_job(num_batches_before: int) -> None:
    scheduler = Scheduler()
    scheduler.add("bulk", "", [100] * 10_000)
    for _ in range(num_batches_before):
        scheduler.take(1000)
    scheduler.add("query", "", [16])
    batch = scheduler.take(1000)
    assert batch is not None
    assert members(batch)[0] == "query0"
    assert len(batch.members) == 1 + 9, "the bulk job fills what the query leaves"


@pytest.mark.parametrize("group_of_short", ["", "other"])
@pytest.mark.parametrize(("num_clients", "fair_share"), [(1, 1 / 2), (4, 1 / 5), (10, 1 / 11)])
def test_a_bulk_job_keeps_its_share_under_a_closed_loop_of_short_jobs(
    num_clients: int, fair_share: float, group_of_short: str
) -> None:
    """Each client sends its next short job when the one before it has been taken."""
    scheduler = Scheduler()
    scheduler.add("bulk", "", [100] * 200)
    for _ in range(num_clients):
        scheduler.add("short", group_of_short, [10])
    num_taken = {"bulk": 0, "short": 0}
    while num_taken["bulk"] < 100 and num_taken["short"] < 100_000:
        batch = scheduler.take(100)  # a short sequence never fits beside a bulk one
        assert batch is not None
        for owner, _ in batch.members:
            num_taken[owner] += 1
            if owner == "short":
                scheduler.add("short", group_of_short, [10])
    assert num_taken["bulk"] == 100, "the bulk job starves"
    share = 100 * num_taken["bulk"] / (100 * num_taken["bulk"] + 10 * num_taken["short"])
    assert share == pytest.approx(fair_share, rel=0.02)


def test_backlogged_groups_get_equal_tokens() -> None:
    scheduler = Scheduler()
    add_all(scheduler, {"g.a": [7] * 300, "h.b": [5] * 400, "i.c": [30] * 70})
    tokens: dict[Hashable, int] = {"g": 0, "h": 0, "i": 0}
    for _ in range(40):
        batch = scheduler.take(64)
        assert batch is not None
        tokens[batch.group] += batch.num_tokens
        assert max(tokens.values()) - min(tokens.values()) <= 2 * 64


def test_a_newcomer_does_not_catch_up_on_what_it_missed() -> None:
    scheduler = Scheduler()
    scheduler.add("a", "", [1] * 100)
    for _ in range(50):
        scheduler.take(1)
    scheduler.add("b", "", [1] * 50)
    taken = [members(scheduler.take(1))[0][0] for _ in range(20)]
    assert taken.count("a") == taken.count("b") == 10


def test_counters_are_exact() -> None:
    scheduler = Scheduler()
    counters = []

    def note() -> None:
        counters.append((scheduler.num_waiting_jobs, scheduler.num_waiting_tokens))

    note()
    claims = add_all(scheduler, {"a": [2, 3], "h.b": [4]})
    note()
    scheduler.take(2)  # a0
    note()
    scheduler.withdraw(claims["h.b"])
    note()
    scheduler.take(9)  # a1
    note()
    assert counters == [(0, 0), (2, 9), (2, 7), (1, 3), (0, 0)]


@pytest.mark.parametrize("num_taken", [0, 1, 2, 3])
@pytest.mark.parametrize("times", [1, 2])
def test_withdrawing_takes_back_exactly_what_has_not_started(num_taken: int, times: int) -> None:
    scheduler = Scheduler()
    scheduler.add("keep", "g", [50])
    claim = scheduler.add("a", "g", [1, 2, 3])
    for _ in range(num_taken):
        assert members(scheduler.take(1)) != ["keep0"]
    for _ in range(times):
        scheduler.withdraw(claim)
    assert (scheduler.num_waiting_jobs, scheduler.num_waiting_tokens) == (1, 50)
    assert owners_of(scheduler) == ["keep"]
    assert all_batches(scheduler, 100) == [["keep0"]]
    scheduler.withdraw(claim)
    assert (scheduler.num_waiting_jobs, scheduler.num_waiting_tokens) == (0, 0)


@pytest.mark.parametrize(
    ("withdrawn", "batches"),
    [
        pytest.param("g.a", ["g.b0", "h.c0"], id="the head of a group"),
        pytest.param("g.a g.b", ["h.c0"], id="a whole group"),
        pytest.param("h.c", ["g.a0 g.b0"], id="another group"),
        pytest.param("g.b", ["g.a0", "h.c0"], id="one behind the head"),
        pytest.param("g.a g.b h.c", [], id="everything"),
    ],
)
def test_withdrawn_jobs_block_nobody(withdrawn: str, batches: list[str]) -> None:
    scheduler = Scheduler()
    claims = add_all(scheduler, {"g.a": [1], "g.b": [2], "h.c": [3]})
    for name in withdrawn.split():
        scheduler.withdraw(claims[name])
    assert [" ".join(batch) for batch in all_batches(scheduler, 9)] == batches
    assert owners_of(scheduler) == []


def test_a_shared_beginning_is_charged_once_a_batch_and_comes_on_top_of_the_budget() -> None:
    """A beginning of 50 tokens, ten sequences that add 10 each, batches of 30."""
    scheduler = Scheduler()
    scheduler.add("job", "m", [60, *[10] * 9], [60] * 10)
    batches = []
    while batch := scheduler.take(30):
        batches.append(([index for _, index in batch.members], batch.num_tokens))
    # the first alone is over the budget; then 50 + 3 x 10 a batch
    assert batches == [([0], 60), ([1, 2, 3], 80), ([4, 5, 6], 80), ([7, 8, 9], 80)]
    assert (scheduler.num_waiting_jobs, scheduler.num_waiting_tokens) == (0, 0)


def test_what_each_batch_computes_again_counts_against_the_job_that_needs_it() -> None:
    """Behind a beginning of 90, each of its batches of 10 more costs 100: another job, with 50
    tokens a sequence, gets its half of the tokens all the same."""
    scheduler = Scheduler()
    scheduler.add("shared", "a", [100, *[10] * 99], [100] * 100)
    scheduler.add("plain", "b", [50] * 100)
    computed = {"shared": 0, "plain": 0}
    for _ in range(30):
        batch = scheduler.take(10)
        assert batch is not None
        computed[batch.members[0][0]] += batch.num_tokens
    assert computed["shared"] == pytest.approx(computed["plain"], rel=0.15)


def test_a_batch_stands_for_a_bounded_number_of_tokens_however_much_is_shared() -> None:
    scheduler = Scheduler()
    scheduler.add("job", "m", [1000, *[1] * 999], [1000] * 1000)
    assert scheduler.take(100) is not None  # the first, alone over the budget
    batch = scheduler.take(100)
    assert batch is not None
    assert len(batch.members) * 1000 <= 64 * 100


@pytest.mark.parametrize("limit", [0, 8])
@pytest.mark.parametrize("num_people", [0, 1, 8])
@pytest.mark.parametrize("num_bulk", [1, 20])
@pytest.mark.parametrize("cost", [9, 40])
def test_nobody_is_overtaken_for_ever(
    cost: int, num_bulk: int, num_people: int, limit: int
) -> None:
    """Others come again as soon as they are served, and urgent ones go first whenever they can. A
    job waits at most for as much of each other one as it needs itself, and for a text of each."""
    rng = Random(cost + num_bulk + num_people)
    scheduler = Scheduler(limit)
    longest, budget = 40, 50
    num_others = num_bulk + num_people

    def come(owner: int) -> None:
        costs = [rng.randint(10, longest) for _ in range(rng.choice([1, 3, 400]))]
        scheduler.add(owner, owner % 3, costs if owner <= num_bulk else [8])

    for owner in range(1, num_others + 1):
        come(owner)
    for _ in range(300):
        _serve(scheduler.take_urgent(), scheduler, come)
        _serve(scheduler.take(budget), scheduler, come)
    watched = scheduler.add(0, 0, [cost])
    num_tokens = 0
    while not watched.withdrawn:
        _serve(scheduler.take_urgent(), scheduler, come)
        if not watched.withdrawn:
            batch = scheduler.take(budget)
            assert batch is not None
            num_tokens += batch.num_tokens
            _serve(batch, scheduler, come)
        assert num_tokens <= (num_others + 1) * (cost + longest) + budget


def _serve(batch: Batch | None, scheduler: Scheduler, come: Callable[[int], None]) -> None:
    """Whoever has nothing left comes again."""
    waiting = set(owners_of(scheduler))
    for owner in {owner for owner, _ in batch.members} if batch is not None else ():
        if owner and owner not in waiting:
            come(owner)
