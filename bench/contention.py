"""How much a busy neighbour costs: spinning at barriers as libgomp does, as we do, not at all.

    python -m bench.contention [--model bge-small] [--rounds 3] [--spins 16000 64000]

One worker process a way of waiting, asked in turn, so that noise hits all; first on an idle
machine, then with one process that keeps a core busy. A worker embeds 60 texts in steps of 1,024
tokens, then short queries one after the other, then short queries with a pause before each, as a
person asks. `--spins` adds ways: other counts of rounds at a barrier.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import measure
from bench.inprocess import embed_all
from bench.loaded import load_embedder
from bench.random_models import build
from engine.cpus import count_cpus
from engine.devices import Device
from engine.fitting import LoadOptions
from engine.text.tokens import TextLimits

_MODELS = Path("bench/models")
_OURS = os.environ.get("GOMP_SPINCOUNT", "")  # absent in the passive worker
_PAUSE_S = 0.3
_Ways = dict[str, dict[str, str]]
_WAYS: _Ways = {
    "libgomp_default": {"GOMP_SPINCOUNT": "300000"},
    "ours": {"GOMP_SPINCOUNT": _OURS},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}


def work(model_name: str) -> None:
    """A worker: for every line on stdin, print tokens/s of bulk and seconds of short queries."""
    torch.set_num_threads(count_cpus())
    device = Device("cpu", "cpu", "float32", "unpadded")
    model = load_embedder(model_name, build(model_name, _MODELS), device, LoadOptions())
    texts = measure.lognormal_texts(60)
    num_tokens = sum(len(t.ids) for t in model.tokenize(texts, TextLimits(model.max_length)))
    embed_all(model, texts, 1024)

    def query(pause_s: float = 0.0) -> float:
        time.sleep(pause_s)
        return measure.seconds(lambda: embed_all(model, ["w1 w2 w3 w4 w5 w6 w7 w8 w9"], 1024))

    print("ready", flush=True)
    for _ in sys.stdin:
        bulk = measure.seconds(lambda: embed_all(model, texts, 1024))
        queries = [query() for _ in range(20)]
        rare = [query(_PAUSE_S) for _ in range(10)]
        told = (statistics.median(queries), statistics.mean(queries), statistics.median(rare))
        print(num_tokens / bulk, *told, flush=True)


@contextlib.contextmanager
def worker(model_name: str, way: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.contention", "--worker", "--model", model_name],
        env={**environment, **way},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def ask(process: subprocess.Popen[str]) -> list[float]:
    """Tokens/s of bulk; seconds of a short query: median, mean, median after a pause."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return [float(number) for number in process.stdout.readline().split()]


def measure_ways(model_name: str, num_rounds: int, ways: _Ways) -> dict[str, dict[str, float]]:
    """Medians by way of waiting."""
    got: dict[str, list[list[float]]] = {name: [] for name in ways}
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(worker(model_name, way)) for name, way in ways.items()}
        for _ in range(num_rounds):
            for name, process in workers.items():
                got[name].append(ask(process))
    return {
        name: {
            "tokens_per_s": round(statistics.median(answer[0] for answer in answers)),
            "query_ms": round(statistics.median(answer[1] for answer in answers) * 1e3, 1),
            "query_mean_ms": round(statistics.mean(answer[2] for answer in answers) * 1e3, 1),
            "query_after_pause_ms": round(statistics.median(a[3] for a in answers) * 1e3, 1),
        }
        for name, answers in got.items()
    }


def run(model_name: str, num_rounds: int, spins: list[int]) -> dict[str, Any]:
    build(model_name, _MODELS)
    ways = _WAYS | {f"spin_{spin}": {"GOMP_SPINCOUNT": str(spin)} for spin in spins}
    idle = measure_ways(model_name, num_rounds, ways)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
        try:
            busy = measure_ways(model_name, num_rounds, ways)
        finally:
            neighbour.kill()
    ours, default = busy["ours"], busy["libgomp_default"]
    return {
        "busy_speedup_over_default": round(ours["tokens_per_s"] / default["tokens_per_s"], 2),
        "busy_query_speedup_over_default": round(default["query_ms"] / ours["query_ms"], 2),
        "busy_mean_query_speedup_over_default": round(
            default["query_mean_ms"] / ours["query_mean_ms"], 2
        ),
        "idle_query_after_pause_over_default": round(
            idle["ours"]["query_after_pause_ms"] / idle["libgomp_default"]["query_after_pause_ms"],
            2,
        ),
        "idle_speedup_over_default": round(
            idle["ours"]["tokens_per_s"] / idle["libgomp_default"]["tokens_per_s"], 3
        ),
        "idle": idle,
        "one_busy_neighbour": busy,
        "spin_count": int(_OURS or 0),
        "model": model_name,
        "rounds": num_rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="a busy neighbour, by way of waiting at barriers")
    parser.add_argument("--model", default="bge-small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spins", type=int, nargs="*", default=[], help="further counts")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.model)
        return
    result = run(arguments.model, arguments.rounds, arguments.spins)
    measure.save(f"contention-{arguments.model}", result)


if __name__ == "__main__":
    main()
