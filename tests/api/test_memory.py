"""A server that has answered 10,000 mixed requests is as large as after the first 1,000."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from itertools import chain
from typing import Any

import psutil
import pytest

from bench.random_models import NUM_WORDS, build
from bench.raw_client import RawClient
from tests.servers import Server, start_server
from tests.serving.fake_engine import until

NUM_CLIENTS = 16
MAX_GROWTH = 0.05


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models")
    build("tiny-bert", models)
    with start_server(EMBEDDING_MODELS_DIR=str(models)) as running:
        yield running


def mixed_requests(rng: random.Random, count: int) -> list[tuple[dict[str, Any], float | None]]:
    """Bodies, some of them bad, and for some a time after which the client leaves."""
    requests: list[tuple[dict[str, Any], float | None]] = []
    for i in range(count):
        texts = [text(rng) for _ in range(min(32, int(rng.paretovariate(1.5))))]
        body: dict[str, Any] = {"input": texts}
        if i % 10 == 1:
            body |= rng.choice(
                [{"truncate": False}, {"input": [*texts, 5]}, {"model": "nope"}, {"keep_alive": []}]
            )
        if i % 10 == 2:
            body |= {"encoding_format": "base64", "dimensions": rng.randint(1, 32)}
        requests.append((body, 0.003 if i % 10 == 3 else None))
    return requests


def text(rng: random.Random) -> str:
    num_words = min(200, int(rng.lognormvariate(2, 1)))
    return " ".join(f"w{rng.randrange(NUM_WORDS)}" for _ in range(num_words))


async def send(client: RawClient, body: dict[str, Any], leaves_after_s: float | None) -> int:
    """The status; 0 for who left."""
    try:
        return (await asyncio.wait_for(client.post("/api/embed", body), leaves_after_s)).status
    except (TimeoutError, asyncio.TimeoutError):
        return 0


async def statuses_of(client: RawClient, rng: random.Random, count: int) -> list[int]:
    requests = iter(mixed_requests(rng, count))

    async def one_client() -> list[int]:
        return [await send(client, *one) for one in requests]

    return [*chain.from_iterable(await asyncio.gather(*(one_client() for _ in range(NUM_CLIENTS))))]


def test_memory_stays_as_it_was_after_the_first_1_000_of_10_000_requests(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    sizes: list[int] = []
    statuses: list[int] = []

    async def send_all() -> None:
        rng = random.Random(1)
        client = RawClient(server.url)
        for _ in range(10):
            statuses.extend(await statuses_of(client, rng, 1_000))
            sizes.append(process.memory_info().rss)
        await client.close()

    asyncio.run(send_all())
    with server.client() as client:
        until(lambda: client.get("/health").json()["waiting_jobs"] == 0)
    assert len(statuses) == 10_000
    assert set(statuses) <= {0, 200, 400, 404}
    assert statuses.count(200) > 5_000
    assert statuses.count(0) > 100  # some did leave
    growth = sizes[-1] / sizes[0] - 1
    assert growth <= MAX_GROWTH, [round(size / 2**20) for size in sizes]
