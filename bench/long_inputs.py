"""Peak memory of one long text: does it grow with the length, or with its square?

    python -m bench.long_inputs [--model bge-m3] [--lengths 2048 4096 8192]

Each length runs in a process of its own: the peak above what the loaded, warmed-up model holds.
The baseline is the shortest length; scores of attention alone, kept for all heads at once, would
take `heads * length^2 * 4` bytes, which is given beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench import measure
from bench.loaded import load_embedder
from bench.random_models import SHAPES, build
from engine.cpus import count_cpus
from engine.devices import CPU
from engine.fitting import LoadOptions
from engine.text.tokens import TextLimits


def one(model_name: str, length: int) -> dict[str, Any]:
    """Run in a process of its own."""
    torch.set_num_threads(count_cpus())
    model = load_embedder(model_name, build(model_name, Path("bench/models")), CPU, LoadOptions())
    text = measure.words(random.Random(0), length)
    tokens = model.tokenize([text], TextLimits(length))
    model.run(model.tokenize(["w1 w2 w3"], TextLimits(length)))
    before = _peak_bytes()
    start = time.perf_counter()
    model.run(tokens)
    return {
        "tokens": len(tokens[0].ids),
        "peak_bytes": _peak_bytes() - before,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(model_name: str, lengths: list[int]) -> dict[str, Any]:
    build(model_name, Path("bench/models"))
    results = []
    for length in lengths:
        command = [sys.executable, "-m", "bench.long_inputs", "--model", model_name]
        done = subprocess.run(
            [*command, "--one", str(length)], capture_output=True, text=True, check=True
        )
        results.append(json.loads(done.stdout.splitlines()[-1]))
    first, last = results[0], results[-1]
    heads = SHAPES[model_name].sizes["num_attention_heads"]
    return {
        "growth_of_peak": round(last["peak_bytes"] / first["peak_bytes"], 2),
        "growth_of_length": round(last["tokens"] / first["tokens"], 2),
        "all_scores_would_take_bytes": heads * last["tokens"] ** 2 * 4,
        "lengths": results,
        "model": model_name,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="peak memory by length")
    parser.add_argument("--model", default="bge-m3")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--one", type=int, help="this length only, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.model, arguments.one)))
        return
    measure.save(f"long-inputs-{arguments.model}", run(arguments.model, arguments.lengths))


if __name__ == "__main__":
    main()
