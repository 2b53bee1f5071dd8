"""A server that has answered 10,000 mixed requests is as large as after the first 1,000."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from bench.random_models import NUM_WORDS, build
from tests.api.fake_engine import until
from tests.servers import Server, start_server

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
        texts = [text(rng) for _ in range(min(64, int(rng.paretovariate(1))))]
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
    num_words = min(200, int(rng.lognormvariate(2.5, 1)))
    return " ".join(f"w{rng.randrange(NUM_WORDS)}" for _ in range(num_words))


def send(client: httpx.Client, body: dict[str, Any], leaves_after_s: float | None) -> int:
    timeout = (
        httpx.USE_CLIENT_DEFAULT
        if leaves_after_s is None
        else httpx.Timeout(leaves_after_s, connect=60, pool=60)
    )
    with contextlib.suppress(httpx.ReadTimeout):
        return client.post("/api/embed", json=body, timeout=timeout).status_code
    return 0


def test_memory_stays_as_it_was_after_the_first_1_000_of_10_000_requests(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    rng = random.Random(1)
    sizes: list[int] = []
    statuses: list[int] = []
    with server.client() as client, ThreadPoolExecutor(NUM_CLIENTS) as pool:
        for _ in range(10):
            answers = pool.map(lambda one: send(client, *one), mixed_requests(rng, 1_000))
            statuses += answers
            sizes.append(process.memory_info().rss)
        until(lambda: client.get("/health").json()["waiting_jobs"] == 0)
    assert set(statuses) <= {0, 200, 400, 404}
    assert statuses.count(200) > 5_000
    growth = sizes[-1] / sizes[0] - 1
    assert growth <= MAX_GROWTH, [round(size / 2**20) for size in sizes]
