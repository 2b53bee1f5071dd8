"""Real server, real forwards, everything going wrong at once: nothing is lost, nothing hangs."""

from __future__ import annotations

import base64
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from bench.random_models import NUM_WORDS, SHAPES, build
from tests.api import faulty
from tests.api.fake_engine import until
from tests.api.faulty import DIES, IS_LARGE, IS_SLOW, IS_SPOILT, RAISES
from tests.engine.oracle import TOLERANCE, Oracle
from tests.servers import Server, start_server

NAME = "tiny-bert"
NUM_CLIENTS = 12
NUM_REQUESTS = 240
DEATHS = (80, 160)  # the requests that kill the thread
LEAVES_AFTER_S = 0.05
A_MOMENT_S = 0.2  # from when a client begins to when its request has come
PATIENCE_S = 60.0
NOBODY, LEFT = -1, 0  # instead of a status


@dataclass(frozen=True)
class Request:
    """Texts, what is wrong with the last of them, and whether the client waits for its answer."""

    texts: list[str]
    fault: str = ""
    leaves: bool = False


@dataclass(frozen=True)
class Answer:
    """The status and what came with it."""

    request: Request
    status: int
    text: str = ""
    vectors: NDArray[np.float32] | None = None


class Expected:
    """Texts without a fault, and what stock transformers makes of them."""

    def __init__(self, folder: Path) -> None:
        shape = SHAPES[NAME]
        oracle = Oracle(folder, shape.pooling, shape.max_length)
        rng = random.Random(5)
        self.short = [_clean(rng, 1 + i % 8) for i in range(40)]
        self.long = [f"{IS_SLOW} {_clean(rng, 15 + i % 40)}" for i in range(200)]
        large = [f"{text} {IS_LARGE}" for text in self.short]
        self._vectors = {text: oracle.embed(text) for text in [*self.short, *self.long, *large]}

    def request(self, rng: random.Random, place: int) -> Request:
        if place in DEATHS:
            return Request([f"{rng.choice(self.short)} {DIES}"], DIES)
        if rng.random() < 0.25:
            texts = rng.sample(self.long, 30)
            return Request(texts, leaves=rng.random() < 0.4)
        texts = rng.sample(self.short, rng.choice([1, 1, 1, 5]))
        fault = rng.choice(["", "", "", RAISES, IS_LARGE, IS_SPOILT])
        if fault:
            texts[-1] = f"{texts[-1]} {fault}"
        return Request(texts, fault, leaves=rng.random() < 0.1)

    def check(self, answer: Answer) -> None:
        expected = [self._vectors[text] for text in answer.request.texts]
        assert answer.vectors is not None
        np.testing.assert_allclose(answer.vectors, expected, atol=TOLERANCE)


def _clean(rng: random.Random, num_words: int) -> str:
    return " ".join(f"w{rng.randrange(10, NUM_WORDS)}" for _ in range(num_words))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    build(NAME, root)
    return root


@pytest.fixture(scope="module")
def expected(models: Path) -> Expected:
    return Expected(models / NAME)


def start(models: Path, max_step_tokens: int) -> AbstractContextManager[Server]:
    return start_server(
        "--factory",
        app="tests.api.faulty:faulty_app",
        EMBEDDING_MODELS_DIR=str(models),
        EMBEDDING_MAX_STEP_TOKENS=str(max_step_tokens),
        EMBEDDING_MAX_URGENT_TOKENS="16",
        EMBEDDING_ACCESS_LOG="false",
    )


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    """It dies three times in this file, as often as it allows itself to."""
    with start(models, 512) as running:
        yield running


def ask(server: Server, request: Request) -> Answer:
    timeout = LEAVES_AFTER_S if request.leaves else 60.0
    body = {"input": request.texts, "encoding_format": "base64"}
    try:
        with server.client(verify=False) as client:  # certificates take longer than a request
            answer = client.post("/api/embed", json=body, timeout=httpx.Timeout(60, read=timeout))
    except httpx.ReadTimeout:
        assert request.leaves, "a request hung"
        return Answer(request, LEFT)
    except httpx.TransportError:
        return Answer(request, NOBODY)
    if answer.status_code != 200:
        return Answer(request, answer.status_code, answer.text)
    rows = [base64.b64decode(row) for row in answer.json()["embeddings"]]
    vectors = np.stack([np.frombuffer(row, np.float32) for row in rows])
    return Answer(request, 200, vectors=vectors)


def ask_until_served(server: Server, request: Request) -> Answer:
    """As a client that honours 503 does; but nobody asks twice for what kills."""
    deadline = time.monotonic() + PATIENCE_S
    while (answer := ask(server, request)).status == 503 and request.fault != DIES:
        assert time.monotonic() < deadline, "the server does not come back"
        time.sleep(0.05)
    return answer


def check(answer: Answer, expected: Expected) -> None:
    """What a client may be told, by what was wrong with its texts."""
    fault, status = answer.request.fault, answer.status
    assert faulty.MESSAGE not in answer.text
    assert "Traceback" not in answer.text
    if status == 200:
        expected.check(answer)
        assert fault in ("", IS_LARGE)
    elif status == LEFT:
        assert answer.request.leaves
    else:
        # 503: the thread died, or was dead. 500: a text of the same step raised, or the own is bad.
        assert status in (500, 503), answer
        assert "memory" not in answer.text, "each fits alone"
        assert fault == IS_SPOILT or "finite" not in answer.text


def is_quiet(server: Server) -> bool:
    with server.client() as client:
        answer = client.get("/health")
    told = answer.json()
    return bool(answer.status_code == 200 and not told["waiting_jobs"] and not told["open_jobs"])


def test_health_says_when_the_thread_is_dead_and_when_it_is_back(
    server: Server, expected: Expected
) -> None:
    told: list[tuple[int, str]] = []
    with server.client() as client, ThreadPoolExecutor(1) as pool:
        killed = pool.submit(ask, server, Request([DIES]))
        until(lambda: is_told(client, told, 503))  # its successor comes a second later
        until(lambda: is_told(client, told, 200))
        assert client.get("/live").status_code == 200
    assert killed.result().status == 503
    assert any("died" in reason for status, reason in told if status == 503)
    expected.check(ask(server, Request(expected.short[:1])))


def is_told(client: httpx.Client, told: list[tuple[int, str]], status: int) -> bool:
    answer = client.get("/health")
    told.append((answer.status_code, answer.json().get("reason", "")))
    return answer.status_code == status


def test_a_storm_of_faults_leaves_nothing_behind(server: Server, expected: Expected) -> None:
    rng = random.Random(1)
    num_deaths = server.log().count("the lane died")
    requests = [expected.request(rng, place) for place in range(NUM_REQUESTS)]
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        answers = list(pool.map(lambda request: ask_until_served(server, request), requests))
    for answer in answers:
        check(answer, expected)
    until(lambda: is_quiet(server))

    counted = Counter((answer.request.fault, answer.status) for answer in answers)
    assert counted[DIES, 503] == len(DEATHS)
    assert counted["", 200] > NUM_REQUESTS / 5, counted
    assert counted[IS_LARGE, 200], counted
    assert counted["", LEFT], counted
    spoilt = [a.text for a in answers if a.request.fault == IS_SPOILT and a.status == 500]
    assert any("not a finite number" in text for text in spoilt)
    log = server.log()
    assert log.count("the lane died") == num_deaths + len(DEATHS)
    assert "runs again in halves" in log

    again = [Request(request.texts) for request in requests if not request.fault]
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        for answer in pool.map(lambda request: ask(server, request), again[:100]):
            expected.check(answer)
    assert server.stop() == 0


def test_sigterm_in_the_middle_of_a_storm(models: Path, expected: Expected) -> None:
    """What was admitted is computed; what comes later is refused, or finds nobody; the end is 0."""
    with start(models, 64) as server:
        storm_with_sigterm(server, expected)


def storm_with_sigterm(server: Server, expected: Expected) -> None:
    rng = random.Random(2)
    bulk = [Request(rng.sample(expected.long, 100)) for _ in range(6)]

    def queries(seed: int) -> list[tuple[float, Answer]]:
        answers: list[tuple[float, Answer]] = []
        own = random.Random(seed)
        while not answers or answers[-1][1].status in (200, 500):
            began = time.monotonic()
            fault = own.choice(["", "", RAISES])
            text = f"{own.choice(expected.short)} {fault}".strip()
            answers.append((began, ask(server, Request([text], fault))))
        return answers

    with ThreadPoolExecutor(len(bulk) + 4) as pool:
        jobs = [pool.submit(ask, server, request) for request in bulk]
        people = [pool.submit(queries, seed) for seed in range(4)]
        with server.client() as client:
            until(lambda: client.get("/health").json()["open_jobs"] >= len(bulk))
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        for job in jobs:
            assert job.result().status in (200, 500)
            check(job.result(), expected)
        assert any(job.result().status == 200 for job in jobs)
        for began, answer in [one for person in people for one in person.result()]:
            assert answer.status != NOBODY or began > told - A_MOMENT_S
            if answer.status != NOBODY:
                check(answer, expected)
