"""A person's queries beside bulk clients: how long they wait, and what that costs the bulk.

    python -m bench.interactive [--model bge-m3] [--window 12] [--think 5]

The real server over HTTP, started once with YIELD=on and once with off. In each, a few rounds: the
interactive client alone; then four bulk clients (32 texts a request, lognormal around 100 tokens,
closed loop) that go on while the interactive client comes for a window and stays away for one, in
turn, so that a noisy machine hits both alike. The interactive client thinks for about `think`
seconds (exponential), sends a text of 12 words and waits for the answer, as one person does. Rates
are tokens that the server computed for bulk, from one end of a step to another.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

import httpx

from bench import measure
from bench.http_load import MODELS, server
from bench.random_models import build

_NUM_BULK, _BULK_TEXTS = 4, 32
_WORDS = 12
_STEP = 300  # more tokens at once than the people's queries are


Window = tuple[int, float]  # the bulk's tokens in so many seconds


@dataclass(slots=True)
class Windows:
    """What the bulk did in windows without and with people, and what the people waited."""

    alone: list[Window]
    beside: list[Window]
    query_ms: list[float]

    def add(self, more: Windows) -> None:
        self.alone += more.alone
        self.beside += more.beside
        self.query_ms += more.query_ms


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

    async def person(self, leaves: asyncio.Event) -> list[float]:
        """Milliseconds of each query. The first comes at any time, not just as a step ends."""
        taken = []
        while not leaves.is_set():
            if self._think_s:
                think_s = self._rng.expovariate(1 / self._think_s)
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(leaves.wait(), think_s)
                    break
            taken.append(await self.query())
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

    async def step_end(self) -> tuple[int, float]:
        """Bulk tokens and the time, just after a bulk step: rates are of whole steps."""
        before = await self.computed()
        while (now := await self.computed()) < before + _STEP:
            await asyncio.sleep(0.05)
        return now, time.perf_counter()

    async def alternating(self, window_s: float, num_pairs: int, num_people: int) -> Windows:
        """Bulk all the time; people in every other window. A short one: noise lasts for a while."""
        found = Windows([], [], [])
        bulks = [asyncio.create_task(self.bulk()) for _ in range(_NUM_BULK)]
        await self.step_end()
        before, start = await self.step_end()
        for place in range(2 * num_pairs):
            leaves = asyncio.Event()
            num_here = num_people if place % 4 in (1, 2) else 0  # away, here, here, away: no drift
            people = [asyncio.create_task(self.person(leaves)) for _ in range(num_here)]
            await asyncio.sleep(max(0.0, start + window_s - time.perf_counter()))
            after, end = await self.step_end()
            leaves.set()
            rates = found.beside if people else found.alone
            rates.append((after - before, end - start))
            before, start = after, end
            for taken in await asyncio.gather(*people):
                found.query_ms.extend(taken)
            if people:  # the last queries are no part of the next window
                before, start = await self.step_end()
        for task in bulks:
            task.cancel()
        await asyncio.gather(*bulks, return_exceptions=True)
        await self.drained()
        return found

    async def drained(self) -> None:
        while (await self._client.get("/health")).json()["waiting_jobs"]:
            await asyncio.sleep(0.2)
        await self.query()


async def measure_server(
    url: str, asked: argparse.Namespace, window_s: float, num_pairs: int
) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=100)
    idle: list[float] = []
    found = Windows([], [], [])
    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=limits, trust_env=False
    ) as client:
        load = Load(client, asked.think)
        for _ in range(3):
            await load.query()
        for _ in range(asked.rounds):
            idle += [await load.query() for _ in range(20)]
            found.add(await load.alternating(window_s, num_pairs, asked.people))
    return {
        "interactive_p95_over_idle": round(_p95(found.query_ms) / _p95(idle), 2),
        "bulk_share_kept": round(statistics.median(_kept(found)), 3),
        "bulk_share_kept_in_all": round(_rate(found.beside) / _rate(found.alone), 3),
        "idle_ms": _summary(idle),
        "beside_bulk_ms": _summary(found.query_ms),
        "bulk_tokens_per_s": {
            "alone": [round(_rate([one]), 1) for one in found.alone],
            "beside": [round(_rate([one]), 1) for one in found.beside],
        },
        "queries": len(found.query_ms),
        "window_s": window_s,
        "pairs_of_windows": num_pairs,
    }


def _rate(windows: list[Window]) -> float:
    return sum(tokens for tokens, _ in windows) / sum(seconds for _, seconds in windows)


def _kept(found: Windows) -> list[float]:
    """Of each two pairs that follow each other: away, here, here, away."""
    firsts = range(0, len(found.alone), 2)
    return [_rate(found.beside[i : i + 2]) / _rate(found.alone[i : i + 2]) for i in firsts]


def _p95(taken: list[float]) -> float:
    return sorted(taken)[int(len(taken) * 0.95)]


def _summary(taken: list[float]) -> dict[str, float]:
    return {
        "p50": round(statistics.median(taken), 1),
        "p95": round(_p95(taken), 1),
        "max": round(max(taken), 1),
    }


def run(asked: argparse.Namespace) -> dict[str, Any]:
    build(asked.model, MODELS)
    found = {}
    for way in asked.ways:
        settings = {
            "EMBEDDING_PREEMPTION": way,
            "EMBEDDING_MAX_BATCH_TOKENS": str(asked.step_tokens),  # no search between two windows
            "EMBEDDING_ACCESS_LOG": "false",
        }
        # A query takes as long as a window without yields: a few long ones.
        windows = (asked.window, asked.pairs) if way == "on" else (max(30.0, asked.window), 2)
        with server(asked.model, **settings) as url:
            found[f"yield_{way}"] = asyncio.run(measure_server(url, asked, *windows))
    return {
        **found,
        "model": asked.model,
        "people": asked.people,
        "think_s": asked.think,
        "rounds": asked.rounds,
        "step_tokens": asked.step_tokens,
        "bulk_clients": _NUM_BULK,
        "texts_a_request": _BULK_TEXTS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="short queries beside bulk clients")
    parser.add_argument("--model", default="bge-m3")
    parser.add_argument("--window", type=float, default=12.0, help="seconds")
    parser.add_argument("--pairs", type=int, default=10, help="of windows a round; an even number")
    parser.add_argument("--step-tokens", type=int, default=1024)
    parser.add_argument("--think", type=float, default=5.0, help="seconds")
    parser.add_argument("--people", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=["on", "off"])
    asked = parser.parse_args()
    if asked.pairs % 2:
        parser.error("--pairs: an even number")
    result = run(asked)
    name = "interactive" if asked.people == 1 else f"interactive-{asked.people}-people"
    measure.save(f"{name}-{asked.model}", result)


if __name__ == "__main__":
    main()
