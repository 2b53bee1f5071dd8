"""Throughput in one process: our packed steps against sentence-transformers and bare products.

    python -m bench.inprocess [--model bge-small] [--texts 200] [--rounds 5]

Three works, interleaved, same weights, same threads: ours (tokenizer, scheduler, forward, pooling),
`SentenceTransformer.encode` with its defaults, and nothing but the matrix products of the model's
own linear layers at the step's size, the most that this machine's fp32 could give.
GFLOP/s of a model counts its matrix products: linear layers and attention's two. What is not a
product (softmax, norms, GELU, tokenizer) is pure loss in it; `linear_only` counts attention as loss
too.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import nn

from batcher.scheduler import Scheduler
from bench import measure
from bench.loaded import load_embedder
from bench.random_models import build
from engine.cpus import count_cpus
from engine.devices import Device
from engine.fitting import LoadOptions
from engine.model import EmbeddingModel
from engine.outputs import dense_rows
from engine.text.tokens import TextLimits
from serving import embedding as vectors


def embed_all(model: EmbeddingModel, texts: list[str], max_step_tokens: int) -> NDArray[np.float32]:
    """What a server's process does for one request of these texts, less HTTP and threads."""
    tokens = model.tokenize(texts, TextLimits(model.max_length))
    scheduler = Scheduler()
    scheduler.add("job", model.name, model.costs(tokens), [len(t.ids) for t in tokens])
    rows = np.empty((len(texts), model.dim), dtype=np.float32)
    while step := scheduler.take(max_step_tokens):
        members = [index for _, index in step.members]
        rows[members] = dense_rows(model.run([tokens[i] for i in members]))
    return vectors.finish(rows)


def bare_products(shapes: list[tuple[int, int]], num_tokens: int) -> Callable[[], None]:
    """One `F.linear` per (out, in) shape on `[num_tokens, in]`: the model's products alone."""
    layers = [nn.Linear(columns, rows).requires_grad_(False) for rows, columns in shapes]
    inputs = {columns: torch.randn(num_tokens, columns) for _, columns in shapes}

    @torch.inference_mode()
    def work() -> None:
        for layer in layers:
            layer(inputs[layer.in_features])

    return work


def linear_shapes(oracle: Any) -> list[tuple[int, int]]:
    """(out, in) of every linear layer of the stock backbone, its pooler head left out."""
    return [
        (module.out_features, module.in_features)
        for name, module in oracle.named_modules()
        if isinstance(module, nn.Linear) and "pooler" not in name
    ]


def attention_flop_of(oracle: Any, length: int) -> int:
    """Q times K, and weights times V, of one sequence in every layer (causal ones count half)."""
    config = oracle[0].auto_model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    products = 4 * config.num_hidden_layers * config.num_attention_heads * head_dim * length**2
    return int(products // 2 if config.model_type == "qwen3" else products)


def run(model_name: str, num_texts: int, num_rounds: int, max_step_tokens: int) -> dict[str, Any]:
    torch.set_num_threads(count_cpus())
    folder = build(model_name, Path("bench/models"))
    device = Device("cpu", "cpu", "float32", "unpadded")
    ours = load_embedder(model_name, folder, device, LoadOptions())
    oracle = SentenceTransformer(str(folder), device="cpu")
    texts = measure.lognormal_texts(num_texts)
    lengths = [len(t.ids) for t in ours.tokenize(texts, TextLimits(ours.max_length))]
    num_tokens = sum(lengths)
    shapes = linear_shapes(oracle)
    taken = measure.rounds(
        {
            "ours": lambda: embed_all(ours, texts, max_step_tokens),
            "sentence_transformers": lambda: encode(oracle, texts),
            "bare_products": bare_products(shapes, max_step_tokens),
        },
        num_rounds,
    )
    agreement = np.abs(embed_all(ours, texts, max_step_tokens) - encode(oracle, texts)).max()
    flop_per_token = 2 * sum(rows * columns for rows, columns in shapes)
    linear_flop = flop_per_token * num_tokens
    attention_flop = sum(attention_flop_of(oracle, length) for length in lengths)
    model_flop_s = [(linear_flop + attention_flop) / t for t in taken["ours"]]
    bare_flop_s = [flop_per_token * max_step_tokens / t for t in taken["bare_products"]]
    share = measure.median_ratio(model_flop_s, bare_flop_s)
    return {
        "speedup_over_sentence_transformers": round(
            measure.median_ratio(taken["sentence_transformers"], taken["ours"]), 3
        ),
        "share_of_bare_products": round(share, 3),
        "share_of_bare_products_linear_only": round(
            share * linear_flop / (linear_flop + attention_flop), 3
        ),
        "tokens_per_s": {
            name: round(num_tokens / statistics.median(taken[name]))
            for name in ("ours", "sentence_transformers")
        },
        "gflop_per_s": {
            "ours": round(statistics.median(model_flop_s) / 1e9, 1),
            "bare_products": round(statistics.median(bare_flop_s) / 1e9, 1),
        },
        "largest_difference": float(agreement),
        "model": model_name,
        "texts": num_texts,
        "tokens": num_tokens,
        "max_step_tokens": max_step_tokens,
        "rounds": num_rounds,
    }


def encode(oracle: SentenceTransformer, texts: list[str]) -> NDArray[np.float32]:
    vectors = oracle.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)


def main() -> None:
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description="in-process throughput against two baselines")
    parser.add_argument("--model", default="bge-small")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-step-tokens", type=int, default=1024)
    arguments = parser.parse_args()
    result = run(arguments.model, arguments.texts, arguments.rounds, arguments.max_step_tokens)
    measure.save(f"inprocess-{arguments.model}", result)


if __name__ == "__main__":
    main()
