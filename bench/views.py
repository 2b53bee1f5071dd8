"""bge-m3's three outputs against its dense vectors alone, up to the answer's bytes.

    python -m bench.views [--model bge-m3] [--texts 32] [--rounds 5]

Both works, interleaved: tokens, batches as the scheduler cuts them, heads, JSON (mostly ColBERT
vectors). `engine_only` leaves the JSON out.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from api.http import body as writing
from batcher.scheduler import Scheduler
from bench import measure
from bench.loaded import load_embedder
from bench.random_models import build
from engine.cpus import count_cpus
from engine.devices import CPU
from engine.fitting import LoadOptions
from engine.model import EmbeddingModel
from engine.outputs import Outputs, dense_rows
from engine.text.tokens import TextLimits
from serving import embedding as vectors

_ALL = ("dense", "sparse", "colbert")


def embed_all(
    model: EmbeddingModel, texts: list[str], outputs: tuple[str, ...], budget: int
) -> list[Outputs]:
    tokens = model.tokenize(texts, TextLimits(model.max_length), outputs=outputs)
    scheduler = Scheduler()
    scheduler.add("job", model.name, model.costs(tokens), [len(t.ids) for t in tokens])
    rows: list[Outputs | None] = [None] * len(texts)
    while step := scheduler.take(budget):
        members = [index for _, index in step.members]
        for i, row in zip(members, model.run([tokens[i] for i in members]), strict=True):
            rows[i] = row
    return [row for row in rows if row is not None]


def answer(rows: list[Outputs]) -> bytes:
    """What /api/embed answers."""
    body: dict[str, Any] = {"embeddings": vectors.finish(dense_rows(rows))}
    if rows[0].sparse is not None:
        body["sparse"] = [vectors.to_weights(row.sparse) for row in rows if row.sparse]
        body["colbert"] = [row.colbert for row in rows]
    return writing.dumps(body)


def run(model_name: str, num_texts: int, num_rounds: int, budget: int) -> dict[str, Any]:
    torch.set_num_threads(count_cpus())
    model = load_embedder(model_name, build(model_name, Path("bench/models")), CPU, LoadOptions())
    texts = measure.lognormal_texts(num_texts)
    taken = measure.rounds(
        {
            "dense": lambda: embed_all(model, texts, ("dense",), budget),
            "all": lambda: embed_all(model, texts, _ALL, budget),
            "dense_answer": lambda: answer(embed_all(model, texts, ("dense",), budget)),
            "all_answer": lambda: answer(embed_all(model, texts, _ALL, budget)),
        },
        num_rounds,
    )
    return {
        "cost_of_all_over_dense": round(
            measure.median_ratio(taken["all_answer"], taken["dense_answer"]), 3
        ),
        "cost_of_all_over_dense_engine_only": round(
            measure.median_ratio(taken["all"], taken["dense"]), 3
        ),
        "seconds": {name: round(statistics.median(times), 2) for name, times in taken.items()},
        "answer_bytes": {
            "dense": len(answer(embed_all(model, texts, ("dense",), budget))),
            "all": len(answer(embed_all(model, texts, _ALL, budget))),
        },
        "model": model_name,
        "texts": num_texts,
        "tokens": sum(len(t.ids) for t in model.tokenize(texts, TextLimits(model.max_length))),
        "max_step_tokens": budget,
        "rounds": num_rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="three outputs against one")
    parser.add_argument("--model", default="bge-m3")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-step-tokens", type=int, default=1024)
    arguments = parser.parse_args()
    result = run(arguments.model, arguments.texts, arguments.rounds, arguments.max_step_tokens)
    measure.save(f"views-{arguments.model}", result)


if __name__ == "__main__":
    main()
