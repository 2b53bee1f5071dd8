"""Throughput over HTTP against the same engine in one process, and what one short text costs.

    python -m bench.http_load [--model bge-small] [--clients 32] [--texts 200] [--rounds 3]

Starts the real server on a free port of 127.0.0.1. Each round lets `clients` closed-loop clients
send the texts one a request, then embeds the same texts in this process (bench/inprocess.py); the
two never run at the same time. The clients share the machine's cores with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch

from bench import measure
from bench.inprocess import embed_all
from bench.loaded import load_embedder
from bench.random_models import build
from engine.cpus import count_cpus
from engine.devices import Device
from engine.fitting import LoadOptions
from engine.text.tokens import TextLimits

MODELS = Path("bench/models")


@contextlib.contextmanager
def server(model: str, **settings: str) -> Iterator[str]:
    """The base URL of a ready `uvicorn embedding:app` that serves `model`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"EMBEDDING_MODELS_DIR": str(MODELS), "EMBEDDING_MODEL": model, **settings}
    command = [sys.executable, "-m", "uvicorn", "embedding:app", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--no-access-log"],
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while not _is_ready(url):
            assert process.poll() is None, "the server has ended; run it by hand to see why"
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


async def closed_loop(url: str, texts: list[str], num_clients: int) -> list[float]:
    """Every text once, `num_clients` requests at a time; the seconds that each took."""
    waiting = list(reversed(texts))
    taken: list[float] = []
    limits = httpx.Limits(max_connections=num_clients)
    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=limits, trust_env=False
    ) as client:

        async def one_client() -> None:
            while waiting:
                text = waiting.pop()
                start = time.perf_counter()
                answer = await client.post(
                    "/api/embed", json={"input": text, "encoding_format": "base64"}
                )
                answer.raise_for_status()
                taken.append(time.perf_counter() - start)

        await asyncio.gather(*(one_client() for _ in range(num_clients)))
    return taken


def run(model_name: str, num_clients: int, num_texts: int, num_rounds: int) -> dict[str, Any]:
    torch.set_num_threads(count_cpus())
    folder = build(model_name, MODELS)
    ours = load_embedder(
        model_name, folder, Device("cpu", "cpu", "float32", "unpadded"), LoadOptions()
    )
    texts = measure.lognormal_texts(num_texts)
    num_tokens = sum(len(t.ids) for t in ours.tokenize(texts, TextLimits(ours.max_length)))
    with server(model_name) as url:
        taken = measure.rounds(
            {
                "http": lambda: asyncio.run(closed_loop(url, texts, num_clients)),
                "in_process": lambda: embed_all(ours, texts, 1024),
            },
            num_rounds,
        )
        short = asyncio.run(closed_loop(url, ["w1 w2 w3 w4 w5 w6 w7 w8"] * 200, 1))
    rates = {name: round(num_tokens / statistics.median(t)) for name, t in taken.items()}
    return {
        "share_of_in_process_rate": round(
            measure.median_ratio(taken["in_process"], taken["http"]), 3
        ),
        "tokens_per_s": rates,
        "idle_short_text_ms": {
            "p50": round(statistics.median(short) * 1e3, 2),
            "p95": round(sorted(short)[int(len(short) * 0.95)] * 1e3, 2),
        },
        "model": model_name,
        "clients": num_clients,
        "texts": num_texts,
        "tokens": num_tokens,
        "rounds": num_rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="HTTP throughput against the engine in process")
    parser.add_argument("--model", default="bge-small")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    result = run(arguments.model, arguments.clients, arguments.texts, arguments.rounds)
    measure.save(f"http-{arguments.model}", result)


if __name__ == "__main__":
    main()
