"""A lane whose budget is found: it tries sizes while more waits, and tells what they took."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any

from batcher.budget import StepBudget
from batcher.job import Job
from batcher.lane import Lane
from batcher.steps import Pause

PATIENCE_S = 30.0
CANDIDATES = (512, 1024, 2048)


def run(group: Hashable, payloads: list[Any], pause: Pause | None) -> list[Any]:
    return payloads


def finish(lane: Lane, num_sequences: int, cost: int) -> None:
    ended = threading.Event()
    job = Job("m", range(1, num_sequences + 1), [cost] * num_sequences)
    job.on_end = ended.set
    lane.submit(job)
    assert ended.wait(PATIENCE_S)
    assert job.error is None
    assert job.rows == list(range(1, num_sequences + 1))


def test_a_backlog_tries_every_candidate_and_settles_on_one() -> None:
    budget = StepBudget(CANDIDATES)
    sizes: list[int] = []
    lane = Lane(run, budget, on_step=lambda step, seconds, done: sizes.append(step.num_tokens))
    finish(lane, num_sequences=12_000, cost=16)
    lane.stop(PATIENCE_S)
    assert set(CANDIDATES) <= set(sizes)
    assert budget.settled("m") in CANDIDATES


def test_an_idle_lane_learns_nothing_from_short_steps() -> None:
    budget = StepBudget(CANDIDATES)
    lane = Lane(run, budget)
    for _ in range(100):
        finish(lane, num_sequences=1, cost=16)
    lane.stop(PATIENCE_S)
    assert budget.settled("m") is None


def test_a_fixed_budget_stays() -> None:
    sizes: list[int] = []
    lane = Lane(run, 64, on_step=lambda step, seconds, done: sizes.append(step.num_tokens))
    finish(lane, num_sequences=400, cost=16)
    lane.stop(PATIENCE_S)
    assert set(sizes) == {64}
