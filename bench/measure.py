"""What every benchmark shares: the texts, the machine line, rounds, and where results go."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from bench.random_models import NUM_WORDS

RESULTS = Path(__file__).parent / "results"


def lognormal_texts(num_texts: int, mean_tokens: int = 100, seed: int = 0) -> list[str]:
    """Texts of one-token words; lengths lognormal (sigma 0.6) around `mean_tokens`, 4 to 500."""
    rng = random.Random(seed)
    sigma = 0.6
    texts = []
    for _ in range(num_texts):
        length = mean_tokens * rng.lognormvariate(-(sigma**2) / 2, sigma)
        texts.append(words(rng, min(500, max(4, round(length)))))
    return texts


def words(rng: random.Random, num_words: int) -> str:
    return " ".join(f"w{rng.randrange(NUM_WORDS)}" for _ in range(num_words))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rounds(works: dict[str, Callable[[], object]], num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each work, interleaved so that a noisy neighbour hits all; one warm-up each."""
    for work in works.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(num_rounds):
        for name, work in works.items():
            taken[name].append(seconds(work))
    return taken


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """How many times faster: the median over rounds of slow / fast within the same round."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def save(name: str, result: dict[str, Any]) -> None:
    """Print the result as the last line and keep it as `bench/results/<name>.json`."""
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    kept = {"benchmark": name, "when": when, "machine": machine(), **result}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(kept))
