"""Reranking with the common prefix run once, against the same work without, and the published way.

    python -m bench.shared_prefix [--model qwen3-reranker-0.6b] [--documents 32] [--rounds 3]

Three works, interleaved, same weights, same threads, one query and its documents: our steps; our
steps with nothing shared; the code of Qwen3-Reranker's model card (stock transformers, left-padded
batches of 8, logits of the whole vocabulary at the last position).
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
from transformers import AutoModelForCausalLM

from batcher.plan import Plan
from bench import measure
from bench.random_models import build
from engine.cpus import count_cpus
from engine.devices import CPU
from engine.loading import LoadOptions, load_reranker
from engine.model import RerankingModel
from engine.tokens import PairLimits, Tokens

_PUBLISHED_BATCH = 8
_QUERY_WORDS = 12


def score_all(model: RerankingModel, tokens: Sequence[Tokens], budget: int) -> NDArray[np.float32]:
    """Raw scores, in steps as the server's plan cuts them."""
    plan = Plan()
    plan.add("job", model.name, model.costs(tokens), [len(t.ids) for t in tokens])
    scores = np.empty(len(tokens), dtype=np.float32)
    while step := plan.take(budget):
        members = [index for _, index in step.members]
        scores[members] = model.run([tokens[i] for i in members])
    return scores


def without_sharing(model: RerankingModel) -> RerankingModel:
    """The same weights, every sequence on its own."""
    plain = RerankingModel.__new__(RerankingModel)
    plain.__dict__.update(model.__dict__)
    plain._backbone = dataclasses.replace(model._backbone, shares_prefixes=False)
    return plain


class Published:
    """The model card's code over the same token ids."""

    def __init__(self, folder: Path, yes: int, no: int) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._yes, self._no = yes, no

    @torch.no_grad()
    def score_all(self, tokens: Sequence[Tokens]) -> NDArray[np.float32]:
        scores: list[float] = []
        for first in range(0, len(tokens), _PUBLISHED_BATCH):
            batch = [t.ids for t in tokens[first : first + _PUBLISHED_BATCH]]
            longest = max(map(len, batch))
            ids = torch.tensor([[0] * (longest - len(row)) + row for row in batch])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
            out = self._model(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False)
            logits = out.logits[:, -1]
            scores += (logits[:, self._yes] - logits[:, self._no]).tolist()
        return np.asarray(scores, dtype=np.float32)


def run(model_name: str, num_documents: int, num_rounds: int, budget: int) -> dict[str, Any]:
    torch.set_num_threads(count_cpus())
    folder = build(model_name, Path("bench/models"))
    model = load_reranker(model_name, folder, CPU, LoadOptions())
    plain = without_sharing(model)
    tokens = _tokens(model, num_documents)
    alone = [len(t.ids) for t in tokens]
    yes, no = _yes_no(model)
    published = Published(folder, yes, no)
    taken = measure.rounds(
        {
            "shared": lambda: score_all(model, tokens, budget),
            "not_shared": lambda: score_all(plain, tokens, budget),
            "model_card": lambda: published.score_all(tokens),
        },
        num_rounds,
    )
    shared, wanted = score_all(model, tokens, budget), published.score_all(tokens)
    return {
        "speedup_over_not_shared": round(
            measure.median_ratio(taken["not_shared"], taken["shared"]), 3
        ),
        "speedup_over_model_card": round(
            measure.median_ratio(taken["model_card"], taken["shared"]), 3
        ),
        "seconds": {name: round(statistics.median(times), 2) for name, times in taken.items()},
        "largest_difference": float(np.abs(shared - wanted).max()),
        "model": model_name,
        "documents": num_documents,
        "tokens": sum(alone),
        "tokens_reckoned": sum(model.costs(tokens)),
        "max_step_tokens": budget,
        "rounds": num_rounds,
    }


def _tokens(model: RerankingModel, num_documents: int) -> list[Tokens]:
    """Documents of 70 to 130 tokens, 100 on average, behind one query."""
    rng = random.Random(0)
    query = measure.words(rng, _QUERY_WORDS)
    documents = [
        _document(rng, 70 + 60 * i // max(1, num_documents - 1)) for i in range(num_documents)
    ]
    rng.shuffle(documents)
    limits = PairLimits(model.max_length)
    return model.tokenize_pairs([(query, document) for document in documents], limits)


def _document(rng: random.Random, num_tokens: int) -> str:
    """The random tokenizer knows bytes and little else: a character is a token."""
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(num_tokens))


def _yes_no(model: RerankingModel) -> tuple[int, int]:
    backend = model._pairs._tokenizer.backend
    return backend.token_to_id("yes"), backend.token_to_id("no")


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
