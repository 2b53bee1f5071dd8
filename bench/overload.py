"""Five times what the server can do: who is admitted, who is refused how fast, and what is left.

    python -m bench.overload [--model bge-small] [--seconds 60] [--times 5] [--max-queue-jobs 32]

The real server over HTTP. First as many closed-loop clients as the queue has places find the
sustainable rate and fill the server's caches (texts one a request, lognormal around 100 tokens);
then requests come at `times` that rate whatever becomes of them (Poisson, fixed seed); then a
single client asks short queries until they are answered as on an idle server. Memory is the
server's own figure (/metrics). The clients share the machine's cores; what a refusal takes is told
by them, and by the server's own clock beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench import measure
from bench.http_load import MODELS, server
from bench.random_models import build
from bench.raw_client import RawClient

_QUERY_WORDS = 8
_IDLE_LIKE = 2.0  # times the idle p95
_NUM_IDLE_LIKE = 5  # queries in a row


@dataclass(frozen=True, slots=True)
class Answered:
    """One request as its client saw it; the queue's time as the server tells it."""

    status: int
    taken_ms: float
    queue_ms: float
    server_ms: float


class Load:
    """Clients of one server."""

    def __init__(self, client: RawClient) -> None:
        self._client = client
        self._rng = random.Random(1)
        self._texts: Iterator[str] = itertools.cycle(measure.lognormal_texts(4096, seed=2))
        self.resident: list[int] = []

    async def ask(self, text: str) -> Answered:
        body = {"input": text, "encoding_format": "base64"}
        answer = await self._client.post("/api/embed", body)
        queue_ms = float(answer.headers.get("x-queue-time", 0))
        server_ms = float(answer.headers["x-total-time"])
        return Answered(answer.status, answer.taken_ms, queue_ms, server_ms)

    async def query(self) -> Answered:
        return await self.ask(measure.words(self._rng, _QUERY_WORDS))

    async def idle_ms(self, num_queries: int = 40) -> list[float]:
        for _ in range(5):
            await self.query()
        return [(await self.query()).taken_ms for _ in range(num_queries)]

    async def sustainable_rate(self, seconds: float, num_clients: int) -> float:
        """Requests a second of a closed loop; the first tenth is warm-up."""
        start = time.perf_counter()
        ends: list[float] = []

        async def client() -> None:
            while time.perf_counter() < start + seconds:
                answered = await self.ask(next(self._texts))
                assert answered.status == 200, answered
                ends.append(time.perf_counter())

        await asyncio.gather(*(client() for _ in range(num_clients)))
        counted = [end for end in ends if start + seconds / 10 <= end < start + seconds]
        return len(counted) / (seconds * 0.9)

    async def open_loop(self, rate: float, seconds: float) -> list[asyncio.Task[Answered]]:
        """All that was asked; some of it still waits for its answer."""
        asked: list[asyncio.Task[Answered]] = []
        due = time.perf_counter()
        end = due + seconds
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.create_task(self.ask(next(self._texts))))
            due += self._rng.expovariate(rate)
        return asked

    async def recovered_s(self, idle_p95_ms: float) -> float:
        """Seconds until several queries in a row are answered as by an idle server."""
        start = first = time.perf_counter()
        num_good = 0
        while num_good < _NUM_IDLE_LIKE:
            began = time.perf_counter()
            answered = await self.query()
            is_good = answered.status == 200 and answered.taken_ms <= _IDLE_LIKE * idle_p95_ms
            first = began if is_good and not num_good else first
            num_good = num_good + 1 if is_good else 0
        return first - start

    async def drained_s(self) -> float:
        start = time.perf_counter()
        while (await self._client.get("/health")).json()["open_jobs"]:
            await asyncio.sleep(0.1)
        return time.perf_counter() - start

    async def watch_memory(self) -> None:
        """Until cancelled."""
        while True:
            self.resident.append(await self.resident_bytes())
            await asyncio.sleep(0.5)

    async def resident_bytes(self) -> int:
        text = (await self._client.get("/metrics")).body.decode()
        found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
        assert found is not None
        return int(float(found[1]))


async def measure_server(
    url: str, seconds: float, times: float, max_queue_requests: int
) -> dict[str, Any]:
    client = RawClient(url)
    load = Load(client)
    idle = await load.idle_ms()
    rate = await load.sustainable_rate(2 * seconds, max_queue_requests)
    before = await load.resident_bytes()
    watcher = asyncio.create_task(load.watch_memory())
    asked = await load.open_loop(rate * times, seconds)
    recovered_s, drained_s = await asyncio.gather(load.recovered_s(_p95(idle)), load.drained_s())
    answers = await asyncio.gather(*asked)
    watcher.cancel()
    after = await load.resident_bytes()
    again = await load.idle_ms()
    await client.close()
    return {
        **_told(answers),
        "idle_ms": {"before": _summary(idle), "after": _summary(again)},
        "sustainable_requests_per_s": round(rate, 1),
        "asked_requests_per_s": round(len(asked) / seconds, 1),
        "resident_mb": {
            "before": _mb(before),
            "every_tenth": [_mb(size) for size in load.resident[:: len(load.resident) // 10 or 1]],
            "peak": _mb(max(load.resident)),
            "after": _mb(after),
        },
        "idle_like_after_s": round(recovered_s, 2),
        "drained_after_s": round(drained_s, 2),
    }


def _told(answers: Sequence[Answered]) -> dict[str, Any]:
    admitted = [a for a in answers if a.status == 200]
    refused = [a.taken_ms for a in answers if a.status == 429]
    assert len(admitted) + len(refused) == len(answers), "neither answered nor refused"
    return {
        "refused_p95_ms": _summary(refused)["p95"] if refused else None,
        "admitted": len(admitted),
        "refused": len(refused),
        "admitted_ms": _summary([a.taken_ms for a in admitted]),
        "admitted_queue_ms": _summary([a.queue_ms for a in admitted]),
        "refused_ms": _summary(refused) if refused else None,
        "refused_server_ms": _summary([a.server_ms for a in answers if a.status == 429])
        if refused
        else None,
    }


def _p95(taken: Sequence[float]) -> float:
    return sorted(taken)[int(len(taken) * 0.95)]


def _summary(taken: Sequence[float]) -> dict[str, float]:
    return {
        "p50": round(statistics.median(taken), 1),
        "p95": round(_p95(taken), 1),
        "max": round(max(taken), 1),
    }


def _mb(num_bytes: int) -> float:
    return round(num_bytes / 1e6, 1)


def run(model: str, seconds: float, times: float, max_queue_requests: int) -> dict[str, Any]:
    build(model, MODELS)
    settings = {
        "EMBEDDING_ACCESS_LOG": "false",
        "EMBEDDING_MAX_QUEUE_REQUESTS": str(max_queue_requests),
    }
    with server(model, **settings) as url:
        found = asyncio.run(measure_server(url, seconds, times, max_queue_requests))
    return {
        **found,
        "model": model,
        "seconds": seconds,
        "times_sustainable": times,
        "max_queue_requests": max_queue_requests,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="admission at several times the sustainable rate")
    parser.add_argument("--model", default="bge-small")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=float, default=5)
    parser.add_argument("--max-queue-jobs", type=int, default=32)
    asked = parser.parse_args()
    result = run(asked.model, asked.seconds, asked.times, asked.max_queue_requests)
    measure.save(f"overload-{asked.model}", result)


if __name__ == "__main__":
    main()
