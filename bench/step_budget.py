"""The rate of full steps by budget, and what MAX_STEP_TOKENS=auto makes of it.

    python -m bench.step_budget [--model bge-small] [--rounds 11]

Steps are cut by the plan from texts of lognormal length around 100 tokens and run on the real
engine. First `StepBudget` searches, as in the lane of a server on a CPU. Then the rates: every
round computes about 2,048 tokens, or one step, at each candidate, in turn, and only rates of one
round are compared, so that noise hits all.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from batcher.budget import CANDIDATES, CPU_CANDIDATES, StepBudget
from bench import measure, step_cost
from engine.model import EmbeddingModel

_ROUND_TOKENS = 2048
_MOST_STEPS = 2000  # of a search; 40 to 400 are usual


def search(model: EmbeddingModel, full: step_cost.FullSteps) -> dict[str, Any]:
    budget = StepBudget(CPU_CANDIDATES)
    asked: list[int] = []
    start = time.perf_counter()
    while budget.settled("model") is None and len(asked) < _MOST_STEPS:
        tokens = budget.next("model")
        num_tokens, seconds = step_cost.timed(model, full.next(tokens))
        budget.observe("model", tokens, num_tokens, seconds, was_full=True)
        asked.append(tokens)
    return {
        "settled_on": budget.settled("model"),
        "after_steps": len(asked),
        "after_s": round(time.perf_counter() - start, 1),
        "asked": {tokens: asked.count(tokens) for tokens in sorted(set(asked))},
    }


def rates_by_round(
    model: EmbeddingModel, full: step_cost.FullSteps, num_rounds: int
) -> dict[int, list[float]]:
    """Tokens per second, by budget; the first round warms up and is left out."""
    rates: dict[int, list[float]] = {budget: [] for budget in CANDIDATES}
    for place in range(num_rounds + 1):
        for budget in CANDIDATES if place % 2 else reversed(CANDIDATES):
            num_steps = max(1, _ROUND_TOKENS // budget)
            steps = [step_cost.timed(model, full.next(budget)) for _ in range(num_steps)]
            rates[budget].append(sum(n for n, _ in steps) / sum(s for _, s in steps))
    return {budget: each[1:] for budget, each in rates.items()}


def run(model_name: str, num_rounds: int) -> dict[str, Any]:
    model = step_cost.load(model_name)
    full = step_cost.FullSteps(model)
    step_cost.timed(model, full.next(_ROUND_TOKENS))
    choice = search(model, full)
    rates = rates_by_round(model, full, num_rounds)
    over_1024 = {
        budget: round(measure.median_ratio(each, rates[1024]), 3) for budget, each in rates.items()
    }
    best = max(over_1024.values())
    best_on_cpu = max(over_1024[budget] for budget in CPU_CANDIDATES)
    settled_on = choice["settled_on"] or 0
    return {
        "choice": choice,
        "rate_over_1024": over_1024,
        "smallest_within_3_percent": min(b for b, rate in over_1024.items() if rate >= 0.97 * best),
        "settled_over_best": round(over_1024.get(settled_on, 0.0) / best, 3),
        "settled_over_best_of_its_candidates": round(
            over_1024.get(settled_on, 0.0) / best_on_cpu, 3
        ),
        "model": model_name,
        "rounds": num_rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="the rate of full steps by budget")
    parser.add_argument("--model", default="bge-small")
    parser.add_argument("--rounds", type=int, default=11)
    asked = parser.parse_args()
    measure.save(f"step-budget-{asked.model}", run(asked.model, asked.rounds))


if __name__ == "__main__":
    main()
