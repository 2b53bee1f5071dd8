"""Starting, leaving and stopping, with real server processes: nothing hangs and nothing is lost."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.api.connections import send, send_head
from tests.servers import Server, start_server
from tests.serving.fake_engine import FakeServer, serve_fake, until


def long_texts(num: int) -> dict[str, list[str]]:
    """A request of texts as long as the stand-in takes. No two alike: equals are computed once."""
    return {"input": [f"{i} " + "word " * 254 for i in range(num)]}


ENDLESS = long_texts(1_000)  # a minute of work and more
SECONDS = long_texts(100)  # a few


@pytest.fixture
def empty(tmp_path: Path) -> str:
    """A models folder without a model: the stand-in serves."""
    return str(tmp_path)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with serve_fake() as running:
        yield running


def health(server: Server | FakeServer) -> httpx.Response | None:
    """None while nobody listens."""
    with server.client() as client:
        try:
            return client.get("/health")
        except httpx.TransportError:
            return None


def reports(server: Server | FakeServer, code: int, **words: Any) -> bool:
    answer = health(server)
    return (
        answer is not None and answer.status_code == code and words.items() <= answer.json().items()
    )


def waits(server: Server | FakeServer) -> bool:
    answer = health(server)
    return answer is not None and answer.json()["waiting_jobs"] > 0


def vectors(answer: httpx.Response) -> NDArray[np.float32]:
    assert answer.status_code == 200, answer.text[:300]
    return np.array(answer.json()["embeddings"], np.float32)


def test_while_it_starts_the_server_says_so_and_refuses_with_503() -> None:
    with serve_fake(ready=False) as server:
        server.say_it_is("loading model Fake-Model")
        answer = health(server)
        assert answer is not None
        assert answer.status_code == 503
        assert answer.json() == {"status": "starting", "reason": "loading model Fake-Model"}
        refused = server.embed({"input": "a"})
        assert refused.status_code == 503
        assert refused.json() == {"error": "loading model Fake-Model"}
        assert int(refused.headers["retry-after"]) > 0


def test_a_dead_worker_is_a_503_that_says_so() -> None:
    with serve_fake() as server:
        assert reports(server, 200, status="ok", model="Fake-Model", waiting_jobs=0)
        server.serving.worker.stop(0.0)
        assert reports(server, 503, status="failed", reason="the compute thread has died")
        assert server.embed({"input": "a"}).status_code == 503


def test_a_draining_server_refuses_new_requests_and_finishes_those_that_run(
    fake: FakeServer,
) -> None:
    with serve_fake() as server, ThreadPoolExecutor(1) as pool:
        with server.held_worker():
            running = pool.submit(server.embed, {"input": ["a", "b"]})
            server.wait_for(lambda worker: worker.num_waiting_jobs == 1)
            server.server.drain()
            assert reports(server, 503, status="draining")
            assert server.embed({"input": "a"}).status_code == 503
        assert (
            running.result().json()["embeddings"]
            == (fake.embed({"input": ["a", "b"]}).json()["embeddings"])
        )


def test_clients_that_leave_while_they_wait_take_their_jobs_along(fake: FakeServer) -> None:
    with fake.held_worker():
        with ExitStack() as clients:
            for _ in range(20):
                clients.enter_context(send(fake.url, {"input": ["a", "b"]}))
            fake.wait_for(lambda worker: worker.num_waiting_jobs == 20)
        fake.wait_for(lambda worker: worker.num_waiting_jobs == 0)
        assert fake.serving.worker.num_waiting_tokens == 0
        assert len(fake.serving.worker._jobs) == 1  # the one that runs
    until(lambda: not fake.open_requests)
    assert fake.embed({"input": "a"}).status_code == 200


def test_a_client_killed_mid_request_leaves_no_job(stand_in_server: Server) -> None:
    connection = send(stand_in_server.url, ENDLESS)
    until(lambda: waits(stand_in_server))
    connection.close()
    until(lambda: reports(stand_in_server, 200, waiting_jobs=0, waiting_tokens=0))
    assert vectors(stand_in_server.embed({"input": "a"})).shape == (1, 384)


def test_a_client_killed_while_it_sends_leaves_nothing(stand_in_server: Server) -> None:
    head = b"POST /api/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    for cut in (head[:20], head, head + b'{"input": "a'):
        with socket.create_connection(("127.0.0.1", stand_in_server.port)) as connection:
            connection.sendall(cut)
    assert vectors(stand_in_server.embed({"input": "a"})).shape == (1, 384)
    assert "Traceback" not in stand_in_server.log()


def test_200_concurrent_clients_all_get_their_own_answers(stand_in_server: Server) -> None:
    texts = [f"client {i} asks " + "more " * (i % 50) for i in range(200)]
    wanted = vectors(stand_in_server.embed({"input": texts}))
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
    with stand_in_server.client(limits=limits) as client, ThreadPoolExecutor(200) as pool:
        posts = [pool.submit(client.post, "/api/embed", json={"input": text}) for text in texts]
        got = np.concatenate([vectors(post.result()) for post in posts])
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert reports(stand_in_server, 200, waiting_jobs=0, waiting_tokens=0)


def test_10_000_texts_in_one_request_come_back_in_order(stand_in_server: Server) -> None:
    texts = [f"{i}" for i in range(10_000)]
    got = vectors(stand_in_server.embed({"input": texts}))
    assert got.shape == (10_000, 384)
    sample = range(7, 10_000, 499)
    alone = [vectors(stand_in_server.embed({"input": texts[i]}))[0] for i in sample]
    np.testing.assert_allclose(got[list(sample)], alone, atol=1e-5)


def test_sigterm_finishes_admitted_requests_and_refuses_new_ones(empty: str) -> None:
    body = b'{"input": "a"}'
    with start_server(EMBEDDING_MODELS_DIR=empty) as server, ThreadPoolExecutor(1) as pool:
        with send_head(server.url, len(body)) as sending:
            until(lambda: reports(server, 200, admitted_requests=1))
            running = pool.submit(server.embed, SECONDS)
            until(lambda: waits(server))
            server.process.send_signal(signal.SIGTERM)
            # However fast the machine: as long as one request is being sent, the server stays.
            until(lambda: reports(server, 503, status="draining"))
            refused = server.embed({"input": "a"})
            assert refused.status_code == 503
            assert refused.json() == {"error": "the server is shutting down"}
            sending.sendall(body)
            assert sending.recv(12) == b"HTTP/1.1 200"
        assert vectors(running.result()).shape == (100, 384)
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.log()


def test_what_runs_past_the_drain_timeout_gets_503_and_the_exit_code_is_0(empty: str) -> None:
    with (
        start_server(
            EMBEDDING_MODELS_DIR=empty,
            EMBEDDING_DRAIN_TIMEOUT_S="0",
            EMBEDDING_MAX_BATCH_TOKENS="20000",  # a step that outlasts the server's patience
        ) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        jobs = [pool.submit(server.embed, ENDLESS) for _ in range(2)]
        until(lambda: reports(server, 200, admitted_requests=2, waiting_jobs=2))
        assert server.stop(timeout_s=15) == 0  # the limit is 0; leaving takes some seconds at most
        for job in jobs:
            assert job.result().status_code == 503
            assert job.result().json() == {"error": "the server is shutting down"}
        assert "Traceback" not in server.log()


def test_sigint_stops_an_idle_server_that_said_503_while_it_loaded(empty: str) -> None:
    with start_server(wait=False, EMBEDDING_MODELS_DIR=empty) as server:
        until(lambda: health(server) is not None)
        answer = health(server)
        assert answer is not None
        assert answer.status_code == 503
        assert answer.json()["status"] == "starting"
        assert "loading model all-MiniLM-L6-v2" in answer.json()["reason"]
        server.wait_until_ready()
        assert server.stop(signal.SIGINT) == 0
        assert "Traceback" not in server.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_loads_ends_the_server_with_0(
    empty: str, number: signal.Signals
) -> None:
    with start_server(wait=False, EMBEDDING_MODELS_DIR=empty) as server:
        until(lambda: reports(server, 503, reason="loading model all-MiniLM-L6-v2"))
        assert server.stop(number) == 0
        assert "Traceback" not in server.log()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EMBEDDING_THREADS", "many"),
        ("EMBEDDING_MAX_INPUTS", "0"),
        ("EMBEDDING_POOLING", "none"),
        ("EMBEDDING_KEEP_ALIVE", "nan"),
        ("EMBEDDING_MODEL", "no-such-model"),
        ("EMBEDDING_MODEL", "/no/such/folder"),
    ],
)
def test_what_cannot_start_says_why_in_one_line_and_exits_with_1(
    empty: str, variable: str, value: str
) -> None:
    environment: dict[str, Any] = {"EMBEDDING_MODELS_DIR": empty, variable: value}
    with start_server(wait=False, **environment) as server:
        assert server.process.wait(60) == 1
        lines = [line for line in server.log().splitlines() if "cannot start" in line]
        assert len(lines) == 1, server.log()
        assert variable in lines[0]
        assert value in lines[0]
        assert "Traceback" not in server.log()
