"""Real server, real forwards, everything going wrong at once: nothing is lost, nothing hangs."""

from __future__ import annotations

import base64
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from bench.random_models import NUM_WORDS, SHAPES, build
from tests.engine.oracle import TOLERANCE, Oracle
from tests.servers import Server, start_server
from tests.serving import faulty
from tests.serving.fake_engine import until
from tests.serving.faulty import DIES, IS_LARGE, IS_SLOW, IS_SPOILT, RAISES

NAME = "tiny-bert"
NUM_CLIENTS = 12
NUM_REQUESTS = 240
DEATHS = (80, 160)  # the requests that kill the thread
LEAVES_AFTER_S = 0.05
PATIENCE_S = 120.0
NOBODY, LEFT = -1, 0  # instead of a status
OUTCOMES = {"": 200, IS_LARGE: 200, RAISES: 500, IS_SPOILT: 500, DIES: 503}  # by what is wrong


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
        app="tests.serving.faulty:faulty_app",
        EMBEDDING_MODELS_DIR=str(models),
        EMBEDDING_MAX_BATCH_TOKENS=str(max_step_tokens),
        EMBEDDING_MAX_URGENT_TOKENS="16",
        EMBEDDING_ACCESS_LOG="false",
    )


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    """It dies three times in this file, as often as it allows itself to."""
    with start(models, 512) as running:
        yield running


def ask(server: Server, request: Request, may_end: threading.Event | None = None) -> Answer:
    """With `may_end` the last byte of the request is sent when that is set."""
    timeout = LEAVES_AFTER_S if request.leaves else 60.0
    content = json.dumps({"input": request.texts, "encoding_format": "base64"}).encode()
    body = content if may_end is None else _held(content, may_end)
    try:
        with server.client(verify=False) as client:  # certificates take longer than a request
            answer = client.post(
                "/api/embed", content=body, timeout=httpx.Timeout(60, read=timeout)
            )
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


def _held(content: bytes, may_end: threading.Event) -> Iterator[bytes]:
    yield content[:-1]
    assert may_end.wait(PATIENCE_S)
    yield content[-1:]


def ask_until_served(server: Server, request: Request, expected: Expected) -> Answer:
    """As a client does that honours 503 and is not to blame for its 500; but nobody asks twice for
    what kills."""
    deadline = time.monotonic() + PATIENCE_S
    while is_others_fault(answer := ask(server, request)):
        check(answer, expected)
        assert time.monotonic() < deadline, "the server does not come back"
        time.sleep(0.05)
    return answer


def is_others_fault(answer: Answer) -> bool:
    """The thread was dead, or a text of the same step raised."""
    if answer.status == 503:
        return answer.request.fault != DIES
    return answer.status == 500 and answer.request.fault != RAISES and "finite" not in answer.text


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


def health(server: Server) -> dict[str, Any]:
    with server.client(verify=False) as client:
        told: dict[str, Any] = client.get("/health").json()
    return told


def is_quiet(server: Server) -> bool:
    told = health(server)
    return bool(
        told["status"] == "ok" and not told["waiting_jobs"] and not told["admitted_requests"]
    )


def test_a_thread_that_dies_gets_a_successor(server: Server, expected: Expected) -> None:
    """What /health says between the two, tests/serving/test_supervision.py shows: here it is soon
    over."""
    killed = ask(server, Request([DIES]))
    assert killed.status == 503
    assert "the compute thread has died" in killed.text
    until(lambda: "the compute thread starts again (1 of 3)" in server.log())
    until(lambda: is_quiet(server))
    assert server.log().count("the worker died") == 1
    expected.check(ask(server, Request(expected.short[:1])))


def test_a_storm_of_faults_leaves_nothing_behind(server: Server, expected: Expected) -> None:
    rng = random.Random(1)
    num_deaths = server.log().count("the worker died")
    requests = [expected.request(rng, place) for place in range(NUM_REQUESTS)]
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        answers = list(
            pool.map(lambda request: ask_until_served(server, request, expected), requests)
        )
    for answer in answers:
        check(answer, expected)
        if answer.status != LEFT:
            assert answer.status == OUTCOMES[answer.request.fault], answer
    until(lambda: is_quiet(server))

    counted = Counter((answer.request.fault, answer.status) for answer in answers)
    assert counted[DIES, 503] == len(DEATHS)
    assert counted["", LEFT], counted
    assert server.log().count("the worker died") == num_deaths + len(DEATHS)

    num_splits = server.log().count("runs again in halves")
    large = [*expected.short[:4], f"{expected.short[4]} {IS_LARGE}"]  # one step, alone
    expected.check(ask(server, Request(large, IS_LARGE)))
    assert server.log().count("runs again in halves") > num_splits

    again = [Request(request.texts) for request in requests if not request.fault]
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        for answer in pool.map(lambda request: ask(server, request), again[:40]):
            expected.check(answer)
    assert server.stop() == 0


def test_sigterm_in_the_middle_of_a_storm(models: Path, expected: Expected) -> None:
    """What was admitted is computed; what comes later is refused, or finds nobody; the end is 0."""
    with start(models, 64) as server:
        storm_with_sigterm(server, expected)


def storm_with_sigterm(server: Server, expected: Expected) -> None:
    bulk = [Request(expected.long[i::6]) for i in range(6)]  # no two texts alike
    all_may_end, last_may_end = threading.Event(), threading.Event()
    people: list[list[Answer]] = [[] for _ in range(4)]

    def queries(seed: int) -> None:
        answers, own = people[seed], random.Random(seed)
        while not answers or answers[-1].status in (200, 500):
            fault = own.choice(["", "", RAISES])
            text = f"{own.choice(expected.short)} {fault}".strip()
            answers.append(ask(server, Request([text], fault)))

    with ThreadPoolExecutor(len(bulk) + len(people)) as pool:
        jobs = [pool.submit(ask, server, request, all_may_end) for request in bulk[:-1]]
        jobs.append(pool.submit(ask, server, bulk[-1], last_may_end))
        try:
            until(lambda: health(server)["admitted_requests"] == len(bulk))
            all_may_end.set()
            asking = [pool.submit(queries, seed) for seed in range(len(people))]
            until(lambda: all(people) and health(server)["computed_tokens"] > 0)
            server.process.send_signal(signal.SIGTERM)
            for person in asking:  # as long as one request is being sent, the server stays
                person.result()
            last_may_end.set()
            assert server.process.wait(60) == 0
        finally:
            server.process.kill()  # else a failure would leave people asking for ever
    for answer in [one for answers in people for one in answers]:
        check(answer, expected)
    assert [answers[-1].status for answers in people] == [503] * len(people)
    for job in jobs:
        assert job.result().status in (200, 500)
        check(job.result(), expected)
    assert jobs[-1].result().status == 200, "nobody is left whose text could raise in its step"
    assert ask(server, Request(["late"])).status == NOBODY
