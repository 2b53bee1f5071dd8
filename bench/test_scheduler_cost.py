"""What the scheduler's decisions cost with a million sequences waiting, in wall time on one thread.

    python -m pytest bench/test_scheduler_cost.py -s

It is not among the tests: those time nothing. Medians are in `bench/results/scheduler-cost.json`.
Texts have 100 tokens on average (10 a batch), those of the short jobs 16. A few of the single ones
are urgent, so that both of the scheduler's heaps are long.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from batcher.scheduler import Scheduler
from bench import measure
from bench.simulator import lengths

_BUDGET, _MAX_URGENT = 1024, 64
_NUM_TAKEN = 10_000  # sequences a round, give or take a batch
_NUM_ADDED = 1000  # jobs a round
_ROUNDS = 20

WAITING = {
    "1,000,000 jobs of 1 text": (1_000_000, 1, 100),
    "1,000,000 jobs of 1 short text": (1_000_000, 1, 16),
    "1,000 jobs of 1,000 texts": (1000, 1000, 100),
}


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, dict[str, float]]]:
    """Microseconds by what waits; kept at the end of a whole run."""
    found: dict[str, dict[str, float]] = {}
    yield found
    if set(found) == set(WAITING):
        measure.save(
            "scheduler-cost",
            {"median_us": found, "budget": _BUDGET, "rounds": _ROUNDS},
        )


@pytest.fixture(scope="module", params=WAITING)
def waiting(request: pytest.FixtureRequest) -> tuple[str, Scheduler, list[list[int]]]:
    """Its name, the scheduler, and the jobs in it."""
    num_jobs, num_texts, mean_tokens = WAITING[request.param]
    drawn = lengths(random.Random(0), num_jobs * num_texts, mean_tokens)
    jobs = [drawn[first : first + num_texts] for first in range(0, len(drawn), num_texts)]
    scheduler = Scheduler(_MAX_URGENT)
    for number, costs in enumerate(jobs):
        scheduler.add(number, "model", costs)
    return request.param, scheduler, jobs


def test_microseconds_of_a_taken_sequence(
    benchmark: BenchmarkFixture,
    waiting: tuple[str, Scheduler, list[list[int]]],
    found: dict[str, dict[str, float]],
) -> None:
    name, scheduler, _ = waiting
    per_sequence = []

    def take() -> None:
        num_taken = 0

        def batches() -> None:
            nonlocal num_taken
            while num_taken < _NUM_TAKEN:
                batch = scheduler.take(_BUDGET)
                assert batch is not None
                num_taken += len(batch.members)

        taken_s = measure.seconds(batches)
        per_sequence.append(taken_s / num_taken * 1e6)

    _run(benchmark, take)
    found.setdefault(name, {})["taken_sequence"] = round(statistics.median(per_sequence), 2)


def test_microseconds_of_an_added_job(
    benchmark: BenchmarkFixture,
    waiting: tuple[str, Scheduler, list[list[int]]],
    found: dict[str, dict[str, float]],
) -> None:
    name, scheduler, jobs = waiting

    per_job = []

    def add() -> None:
        def all_of_them() -> None:
            for costs in jobs[:_NUM_ADDED]:
                scheduler.add("late", "model", costs)

        per_job.append(measure.seconds(all_of_them) / _NUM_ADDED * 1e6)

    _run(benchmark, add)
    found.setdefault(name, {})["added_job"] = round(statistics.median(per_job), 2)


def _run(benchmark: BenchmarkFixture, work: Callable[[], None]) -> None:
    pedantic: Callable[..., object] = benchmark.pedantic  # it has no types of its own
    pedantic(work, rounds=_ROUNDS, warmup_rounds=1)
