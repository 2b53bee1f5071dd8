"""The rate of full steps by budget, and what MAX_STEP_TOKENS=auto makes of it.

    python -m bench.step_budget [--model bge-small] [--rounds 7]

Every round computes at least 2,048 tokens at each candidate, in steps cut by the plan from texts of
lognormal length around 100 tokens, on the real engine; candidates take turns, so that noise hits
all. The steps are then played to `StepBudget` as if it had asked for them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from typing import Any

from batcher.budget import CANDIDATES, StepBudget
from bench import measure, step_cost
from engine.model import EmbeddingModel

_ROUND_TOKENS = 2048
_MOST_STEPS = 400  # of a search; 15 to 90 are usual

Timed = tuple[int, float]  # tokens, seconds


def timed_steps(model: EmbeddingModel, num_rounds: int) -> dict[int, list[list[Timed]]]:
    """By budget, the steps of each round; the first round warms up and is left out."""
    full = step_cost.FullSteps(model)
    found: dict[int, list[list[Timed]]] = {budget: [] for budget in CANDIDATES}
    for _ in range(num_rounds + 1):
        for budget, rounds in found.items():
            num_steps = max(1, _ROUND_TOKENS // budget)
            rounds.append([step_cost.timed(model, full.next(budget)) for _ in range(num_steps)])
    return {budget: rounds[1:] for budget, rounds in found.items()}


def rates(rounds: list[list[Timed]]) -> list[float]:
    """Tokens per second of each round."""
    return [sum(n for n, _ in steps) / sum(s for _, s in steps) for steps in rounds]


def choose(found: dict[int, list[list[Timed]]]) -> dict[str, Any]:
    """Play the steps, in their order and over again, until the search settles."""
    in_order = itertools.chain.from_iterable
    endless = {budget: itertools.cycle(in_order(rounds)) for budget, rounds in found.items()}
    search = StepBudget()
    asked: list[int] = []
    while search.settled("model") is None and len(asked) < _MOST_STEPS:
        budget = search.next("model")
        num_tokens, seconds = next(endless[budget])
        search.observe("model", budget, num_tokens, seconds, was_full=True)
        asked.append(budget)
    return {
        "settled_on": search.settled("model"),
        "after_steps": len(asked),
        "asked": {budget: asked.count(budget) for budget in sorted(set(asked))},
    }


def run(model_name: str, num_rounds: int) -> dict[str, Any]:
    model = step_cost.load(model_name)
    found = timed_steps(model, num_rounds)
    by_round = {budget: rates(rounds) for budget, rounds in found.items()}
    medians = {budget: statistics.median(each) for budget, each in by_round.items()}
    best = max(medians.values())
    print(f"{'budget':>8}{'tokens/s':>10}{'of best':>9}{'over 1024, by round':>21}")
    for budget, rate in medians.items():
        ratio = measure.median_ratio(by_round[budget], by_round[1024])
        print(f"{budget:8}{rate:10.0f}{rate / best:9.3f}{ratio:21.3f}")
    return {
        "choice": choose(found),
        "rate_over_1024": {
            budget: round(measure.median_ratio(each, by_round[1024]), 3)
            for budget, each in by_round.items()
        },
        "tokens_per_s": {budget: round(rate) for budget, rate in medians.items()},
        "smallest_within_3_percent": min(b for b, rate in medians.items() if rate >= 0.97 * best),
        "step_ms": {
            budget: round(statistics.median(s for step in found[budget] for _, s in step) * 1e3, 1)
            for budget in found
        },
        "model": model_name,
        "rounds": num_rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="the rate of full steps by budget")
    parser.add_argument("--model", default="bge-small")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    measure.save(f"step-budget-{asked.model}", run(asked.model, asked.rounds))


if __name__ == "__main__":
    main()
