"""A request's timeout: what cannot be in time is not started, what is not in time is given up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.error_shapes import dialect_by_path, fault_of
from tests.serving.fake_engine import NAME, FakeServer, serve_fake, until
from tests.serving.fake_models import TIMEOUT_S, write_model

SOON, NEVER = "0.2", "86400"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    write_model(tmp_path, NAME)
    write_model(tmp_path, "other")
    with serve_fake(models_dir=tmp_path) as running:
        yield running


def within(timeout: str) -> dict[str, Any]:
    return {"headers": {"x-request-timeout": timeout}}


def until_empty(server: FakeServer) -> None:
    admission = server.serving.admission
    until(lambda: (admission.num_requests, admission.num_tokens) == (0, 0))


@pytest.mark.parametrize(
    "timeout", ["0", "-1", "nan", "inf", "86400.1", "soon", "", "5 s", "1_0", "1e999", "0x10", "é"]
)
@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings", "/embed", "/rerank", "/decode"])
def test_a_timeout_that_is_no_time_is_a_400(server: FakeServer, path: str, timeout: str) -> None:
    headers = [(b"x-request-timeout", timeout.encode("latin-1"))]
    with server.client() as client:
        answer = client.post(path, json={}, headers=headers)
    fault = fault_of(answer, dialect_by_path(path), 400)
    words = "x-request-timeout must be seconds, above 0 and at most 86400, not "
    assert fault.text.startswith(words)
    until_empty(server)


@pytest.mark.parametrize("timeout", ["60", "59.5", "86400", "1e3"])
def test_what_is_done_in_time_is_answered(server: FakeServer, timeout: str) -> None:
    assert server.embed({"input": "abc"}, **within(timeout)).status_code == 200


def test_what_waits_too_long_is_withdrawn_and_told_to_come_again(server: FakeServer) -> None:
    worker = server.serving.worker
    with server.held_worker():
        for path, body in (
            ("/api/embed", {"input": ["abc", "de"]}),
            ("/v1/embeddings", {"input": "abc"}),
            ("/embed", {"inputs": "abc"}),
            ("/rerank", {"query": "a", "documents": ["b"]}),
        ):
            assert is_given_up_on_the_worker(server, path, body), path
            assert worker.num_waiting_jobs == 0
    until_empty(server)
    assert server.engine.steps == [(NAME, 1)], "nothing but what held the worker was computed"
    assert server.embed({"input": "abc"}, **within(NEVER)).status_code == 200


def is_given_up_on_the_worker(server: FakeServer, path: str, body: dict[str, Any]) -> bool:
    """A machine so busy that the time ends before the job is on the worker is given more of it."""
    worker = server.serving.worker
    for timeout in ("0.2", "2", "20"):
        num_cancelled = worker.num_cancelled
        answer = server.post(path, body, **within(timeout))
        fault = fault_of(answer, dialect_by_path(path), 503)
        assert fault.text == f"not done within {timeout} s (x-request-timeout)"
        assert int(answer.headers["retry-after"]) >= 1
        if worker.num_cancelled > num_cancelled:
            return True
    return False


@pytest.mark.parametrize(
    ("setting_s", "header", "told"),
    [
        (0.2, None, "0.2 s (request_timeout_s)"),
        (0.2, NEVER, "0.2 s (request_timeout_s)"),
        (60.0, SOON, "0.2 s (x-request-timeout)"),
        (None, SOON, "0.2 s (x-request-timeout)"),
    ],
)
def test_the_smaller_of_header_and_setting_counts_while_a_model_loads(
    tmp_path: Path, setting_s: float | None, header: str | None, told: str
) -> None:
    for name in (NAME, "other"):
        write_model(tmp_path, name)
    with serve_fake(models_dir=tmp_path, request_timeout_s=setting_s) as server:
        options = {} if header is None else within(header)
        with server.engine.held_loads():
            for path in ("/api/generate", "/tokenize", "/api/embed"):
                body = {"model": "other", "input": "a", "inputs": "a"}
                fault = fault_of(server.post(path, body, **options), dialect_by_path(path), 503)
                assert fault.text == f"not done within {told}"
        until_empty(server)
        until(lambda: "other" in server.resident_names)  # the load goes on


def test_texts_that_wait_for_the_tokenizer_are_given_up_too(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    tokenize = server.model.tokenize

    def slow(*arguments: Any) -> Any:
        assert goes_on.wait(TIMEOUT_S)
        return tokenize(*arguments)

    monkeypatch.setattr(server.model, "tokenize", slow)
    try:
        answer = server.embed({"input": ["a"] * 100}, **within(SOON))
        assert "not done within 0.2 s" in fault_of(answer, "ollama", 503).text
        until_empty(server)
    finally:
        goes_on.set()
    assert server.engine.steps == []


def test_what_would_take_too_long_is_refused_before_it_starts(server: FakeServer) -> None:
    server.server.metrics.rate.count(1, 1000.0)
    with server.held_worker():  # so that nothing measures another rate
        for path, body in (
            ("/api/embed", {"input": ["abc", "de"]}),
            ("/v1/embeddings", {"input": "abc"}),
            ("/embed", {"inputs": "abc"}),
            ("/rerank", {"query": "a", "documents": ["b"]}),
        ):
            answer = server.post(path, body, **within("60"))
            fault = fault_of(answer, dialect_by_path(path), 429)
            assert fault.text.startswith("this request cannot be done in time: ")
            assert answer.headers["retry-after"] == "600"
        assert server.serving.worker.num_waiting_jobs == 0
    until_empty(server)


def test_a_rate_measured_too_low_does_not_refuse_for_ever(server: FakeServer) -> None:
    server.server.metrics.rate.count(1, 1000.0)
    answers = [server.embed({"input": "abc"}, **within("60")).status_code for _ in range(12)]
    assert answers[0] == 429
    assert answers[-1] == 200
    assert answers == sorted(answers, reverse=True)


def test_what_only_looks_takes_no_timeout(server: FakeServer) -> None:
    with server.client() as client:
        assert client.get("/v1/models", headers={"x-request-timeout": "soon"}).status_code == 200


def test_a_body_that_came_too_late_is_not_begun(server: FakeServer) -> None:
    admission = server.serving.admission

    def body() -> Iterator[bytes]:
        yield b'{"input": '
        until(lambda: admission.num_requests == 1)
        threading.Event().wait(0.3)  # longer than the timeout
        yield b'"abc"}'

    with server.client() as client:
        answer = client.post("/api/embed", content=body(), **within(SOON))
    assert "not done within 0.2 s" in fault_of(answer, "ollama", 503).text
    assert server.engine.steps == []
