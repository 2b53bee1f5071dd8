"""Who ends when, on the real server: two equal jobs, and a huge one beside a hundred.

    python -m bench.fairness [--model bge-small]

Two jobs of 200 texts, sent together, whose ends should be within a tenth of each other; then a job
of 10,000 short texts, with 100 jobs of 100 texts sent just after it. With equal service at any
moment (processor sharing) the hundred would end together, when all of theirs and as much of the
huge one as of one of them is done; the last one's end is compared with that, in tokens computed,
not seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import httpx

from bench import measure
from bench.http_load import MODELS, server
from bench.random_models import build

_NUM_EQUAL = 200
_NUM_HUGE, _NUM_SMALL, _SMALL = 10_000, 100, 100
_SHORT_TOKENS = 8  # words of the second part's texts


async def ended(client: httpx.AsyncClient, texts: list[str]) -> tuple[float, int]:
    """When a job's answer came, and the tokens that the server had computed by then."""
    body = {"input": texts, "encoding_format": "base64"}
    (await client.post("/api/embed", json=body)).raise_for_status()
    now = time.perf_counter()
    health = (await client.get("/health")).json()
    return now, int(health["computed_tokens"])


async def two_equal(client: httpx.AsyncClient) -> dict[str, Any]:
    texts = measure.lognormal_texts(2 * _NUM_EQUAL)
    texts.sort(key=len)
    jobs = texts[::2], texts[1::2]
    start = time.perf_counter()
    ends = await asyncio.gather(*(ended(client, job) for job in jobs))
    seconds = sorted(end - start for end, _ in ends)
    return {
        "last_over_first_end": round(seconds[1] / seconds[0], 3),
        "seconds": [round(s, 2) for s in seconds],
    }


async def huge_and_small(client: httpx.AsyncClient) -> dict[str, Any]:
    texts = [f"w{i % 5000} " * _SHORT_TOKENS + f"w{i // 5000}" for i in range(20_000)]
    before = int((await client.get("/health")).json()["computed_tokens"])
    huge = asyncio.create_task(ended(client, texts[:_NUM_HUGE]))
    while not (await client.get("/health")).json()["waiting_tokens"]:
        await asyncio.sleep(0.05)
    parts = [texts[_NUM_HUGE + i * _SMALL :][:_SMALL] for i in range(_NUM_SMALL)]
    small = await asyncio.gather(*(ended(client, part) for part in parts))
    _, huge_end = await huge
    total = huge_end - before
    small_tokens = total * _NUM_SMALL * _SMALL / (_NUM_HUGE + _NUM_SMALL * _SMALL)
    fair = small_tokens * (1 + 1 / _NUM_SMALL)
    ends = sorted(tokens - before for _, tokens in small)
    return {
        "worst_small_end_over_fair": round(ends[-1] / fair, 3),
        "first_small_end_over_fair": round(ends[0] / fair, 3),
        "tokens": total,
    }


async def measure_all(url: str) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(
        base_url=url, timeout=1200, limits=limits, trust_env=False
    ) as client:
        await ended(client, ["w1 w2"])
        return {
            "two_equal_jobs": await two_equal(client),
            "a_huge_job_and_100": await huge_and_small(client),
        }


def run(model: str) -> dict[str, Any]:
    build(model, MODELS)
    with server(model, EMBEDDING_ACCESS_LOG="false") as url:
        return {**asyncio.run(measure_all(url)), "model": model}


def main() -> None:
    parser = argparse.ArgumentParser(description="when equal and unequal jobs end")
    parser.add_argument("--model", default="bge-small")
    asked = parser.parse_args()
    measure.save(f"fairness-{asked.model}", run(asked.model))


if __name__ == "__main__":
    main()
