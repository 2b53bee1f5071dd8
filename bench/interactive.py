"""A person's queries beside bulk clients: how long they wait, and what that costs the bulk.

    python -m bench.interactive [--model bge-m3] [--seconds 120] [--think 3.0]

The real server over HTTP, started once with YIELD=on and once with off. In each: the interactive
client alone, four bulk clients alone (32 texts a request, lognormal around 100 tokens, closed
loop), then all five. The interactive client sends a text of 12 words, waits for the answer, and
thinks for about `think` seconds (exponential), as one person does. Rates are tokens that the server
computed for bulk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import time
from typing import Any

import httpx

from bench import measure
from bench.http_load import MODELS, server
from bench.random_models import build

_NUM_BULK, _BULK_TEXTS = 4, 32
_WORDS = 12


class Load:
    """Clients of one server."""

    def __init__(self, client: httpx.AsyncClient, think_s: float) -> None:
        self._client = client
        self._think_s = think_s
        self._rng = random.Random(1)
        self._texts = measure.lognormal_texts(4096, seed=2)
        self._query_tokens = 0

    async def query(self) -> float:
        """Milliseconds that one short text took."""
        body = {"input": measure.words(self._rng, _WORDS), "encoding_format": "base64"}
        start = time.perf_counter()
        answer = await self._client.post("/api/embed", json=body)
        answer.raise_for_status()
        self._query_tokens += answer.json()["prompt_eval_count"]
        return (time.perf_counter() - start) * 1e3

    async def person(self, until: float) -> list[float]:
        taken = []
        while time.perf_counter() < until:
            taken.append(await self.query())
            await asyncio.sleep(self._rng.expovariate(1 / self._think_s))
        return taken

    async def bulk(self) -> None:
        """For ever, until cancelled."""
        while True:
            texts = self._rng.sample(self._texts, _BULK_TEXTS)
            body = {"input": texts, "encoding_format": "base64"}
            (await self._client.post("/api/embed", json=body)).raise_for_status()

    async def computed(self) -> int:
        """Tokens so far, but for the queries'."""
        health = (await self._client.get("/health")).json()
        return int(health["computed_tokens"]) - self._query_tokens

    async def beside_bulk(self, seconds: float, num_people: int) -> tuple[list[float], float]:
        """What people's queries took, and the bulk's tokens a second."""
        bulks = [asyncio.create_task(self.bulk()) for _ in range(_NUM_BULK)]
        await asyncio.sleep(min(10.0, seconds / 6))  # the queue fills
        before, start = await self.computed(), time.perf_counter()
        people = [self.person(start + seconds) for _ in range(num_people)]
        taken = await asyncio.gather(*people)
        if not people:
            await asyncio.sleep(seconds)
        rate = (await self.computed() - before) / (time.perf_counter() - start)
        for task in bulks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*bulks)
        return [ms for one in taken for ms in one], rate


async def measure_server(url: str, seconds: float, think_s: float, people: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=limits, trust_env=False
    ) as client:
        load = Load(client, think_s)
        for _ in range(3):
            await load.query()
        idle = [await load.query() for _ in range(40)]
        _, bulk_alone = await load.beside_bulk(seconds / 2, 0)
        await _drained(client)
        busy, bulk_beside = await load.beside_bulk(seconds, people)
    return {
        "interactive_p95_over_idle": round(_p95(busy) / _p95(idle), 2),
        "bulk_share_kept": round(bulk_beside / bulk_alone, 3),
        "idle_ms": _summary(idle),
        "beside_bulk_ms": _summary(busy),
        "bulk_tokens_per_s": {"alone": round(bulk_alone, 1), "beside": round(bulk_beside, 1)},
        "queries": len(busy),
    }


async def _drained(client: httpx.AsyncClient) -> None:
    while (await client.get("/health")).json()["waiting_jobs"]:
        await asyncio.sleep(0.2)
    await asyncio.sleep(1.0)


def _p95(taken: list[float]) -> float:
    return sorted(taken)[int(len(taken) * 0.95)]


def _summary(taken: list[float]) -> dict[str, float]:
    return {
        "p50": round(statistics.median(taken), 1),
        "p95": round(_p95(taken), 1),
        "max": round(max(taken), 1),
    }


def run(model: str, seconds: float, think_s: float, people: int, ways: list[str]) -> dict[str, Any]:
    build(model, MODELS)
    found = {}
    for way in ways:
        with server(model, EMBEDDING_YIELD=way, EMBEDDING_ACCESS_LOG="false") as url:
            found[f"yield_{way}"] = asyncio.run(measure_server(url, seconds, think_s, people))
    return {
        **found,
        "model": model,
        "people": people,
        "think_s": think_s,
        "seconds": seconds,
        "bulk_clients": _NUM_BULK,
        "texts_a_request": _BULK_TEXTS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="short queries beside bulk clients")
    parser.add_argument("--model", default="bge-m3")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--think", type=float, default=3.0)
    parser.add_argument("--people", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=["on", "off"])
    asked = parser.parse_args()
    result = run(asked.model, asked.seconds, asked.think, asked.people, asked.ways)
    name = "interactive" if asked.people == 1 else f"interactive-{asked.people}-people"
    measure.save(f"{name}-{asked.model}", result)


if __name__ == "__main__":
    main()
