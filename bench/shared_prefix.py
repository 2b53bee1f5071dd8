"""Reranking with the common prefix run once, against the same work without.

    python -m bench.shared_prefix [--model qwen3-reranker-0.6b] [--documents 32] [--rounds 3]

Two works, interleaved, same weights, same threads, one query and its documents: our steps, and our
steps with nothing shared. Token ids are random, in about the numbers that Qwen3's own tokenizer
gives (the random model's has few merges): 75 of template, instruction and query, 100 of document on
average, 10 of template after it.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from batcher.scheduler import Scheduler
from bench import measure
from bench.loaded import load_reranker
from bench.random_models import build
from engine.cpus import count_cpus
from engine.devices import CPU
from engine.fitting import LoadOptions
from engine.model import RerankingModel
from engine.text.tokens import Tokens

_BEFORE, _AFTER = 75, 10  # tokens of the template around a document
_MAX_ID = 150_000


def score_all(model: RerankingModel, tokens: Sequence[Tokens], budget: int) -> NDArray[np.float32]:
    """Raw scores, in steps as the server's scheduler cuts them."""
    scheduler = Scheduler()
    scheduler.add("job", model.name, model.costs(tokens), [len(t.ids) for t in tokens])
    scores = np.empty(len(tokens), dtype=np.float32)
    while step := scheduler.take(budget):
        members = [index for _, index in step.members]
        scores[members] = model.run([tokens[i] for i in members])
    return scores


def without_sharing(model: RerankingModel) -> RerankingModel:
    """The same weights, every sequence on its own."""
    plain = RerankingModel.__new__(RerankingModel)
    plain.__dict__.update(model.__dict__)
    backbone: Any = model._backbone
    forward = dataclasses.replace(backbone.forward, share_prefixes=False)
    plain._backbone = dataclasses.replace(backbone, forward=forward, shares_prefixes=False)
    return plain


def run(model_name: str, num_documents: int, num_rounds: int, budget: int) -> dict[str, Any]:
    torch.set_num_threads(count_cpus())
    folder = build(model_name, Path("bench/models"))
    model = load_reranker(model_name, folder, CPU, LoadOptions())
    plain = without_sharing(model)
    tokens = _tokens(num_documents)
    taken = measure.rounds(
        {
            "shared": lambda: score_all(model, tokens, budget),
            "not_shared": lambda: score_all(plain, tokens, budget),
        },
        num_rounds,
    )
    few = tokens[:8]
    difference = np.abs(score_all(model, few, budget) - score_all(plain, few, budget)).max()
    return {
        "speedup_over_not_shared": round(
            measure.median_ratio(taken["not_shared"], taken["shared"]), 3
        ),
        "seconds": {name: round(statistics.median(times), 2) for name, times in taken.items()},
        "largest_difference": float(difference),
        "model": model_name,
        "documents": num_documents,
        "tokens": sum(len(t.ids) for t in tokens),
        "tokens_once": sum(model.costs(tokens)),
        "max_step_tokens": budget,
        "rounds": num_rounds,
    }


def _tokens(num_documents: int) -> list[Tokens]:
    """Documents of 70 to 130 tokens, 100 on average, in no order."""
    rng = random.Random(0)

    def draw(num_tokens: int) -> list[int]:
        return [rng.randrange(1000, _MAX_ID) for _ in range(num_tokens)]

    before, after = draw(_BEFORE), draw(_AFTER)
    lengths = [70 + 60 * i // max(1, num_documents - 1) for i in range(num_documents)]
    rng.shuffle(lengths)
    return [Tokens([*before, *draw(length), *after]) for length in lengths]


def main() -> None:
    parser = argparse.ArgumentParser(description="reranking with and without a shared prefix")
    parser.add_argument("--model", default="qwen3-reranker-0.6b")
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-step-tokens", type=int, default=1024)
    arguments = parser.parse_args()
    result = run(arguments.model, arguments.documents, arguments.rounds, arguments.max_step_tokens)
    measure.save(f"shared-prefix-{arguments.model}", result)


if __name__ == "__main__":
    main()
