"""Every error has the shape of its route's dialect, whatever it is and wherever it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.fake_engine import FakeServer, serve_fake
from tests.api.fake_models import write_broken, write_model

OLLAMA = ("/api/embed", "/api/rerank")
OPENAI = ("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score")
NAME = "ranker"
MAX_BODY_BYTES = 4096


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models")
    write_model(folder, NAME, "BertForSequenceClassification", max_length=100)
    write_model(folder, "embedder", has_heads=True)
    write_broken(folder, "broken")
    return folder


@pytest.fixture
def server(root: Path) -> Iterator[FakeServer]:
    with serve_fake(models_dir=root, pinned=[NAME], max_body_bytes=MAX_BODY_BYTES) as running:
        yield running


@pytest.fixture(scope="module")
def patient(root: Path) -> Iterator[FakeServer]:
    """The same for tests of many requests."""
    with serve_fake(models_dir=root, pinned=[NAME], max_body_bytes=MAX_BODY_BYTES) as running:
        yield running


def text_of(path: str, answer: httpx.Response, status: int) -> str:
    """The text of an error in the shape of the path's dialect."""
    assert answer.status_code == status, (path, answer.text)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    if path.startswith("/api"):
        assert body.keys() == {"error"}
        text = body["error"]
    else:
        assert body.keys() == {"error", "detail"}
        text = body["detail"]
        kind = "server_error" if status >= 500 else "invalid_request_error"
        assert body["error"] == {"message": text, "type": kind, "param": None, "code": None}
    assert isinstance(text, str)
    assert text
    return text


def good(path: str, **more: Any) -> dict[str, Any]:
    if path == "/api/embed":
        return {"input": "a", "model": "embedder", **more}
    if "score" in path:
        return {"text_1": "a", "text_2": "b", **more}
    return {"query": "a", "documents": ["b"], **more}


def test_good_input_is_answered_on_every_route(server: FakeServer) -> None:
    for path in (*OLLAMA, *OPENAI):
        assert server.post(path, good(path)).status_code == 200, path


def test_bad_input_is_a_400(server: FakeServer) -> None:
    with server.client() as client:
        for path in (*OLLAMA, *OPENAI):
            for content, words in (
                (b"", "missing request body"),
                (b"{", "invalid JSON"),
                (b"[]", "the body must be a JSON object"),
                (b'{"model": 5}', "model: "),
                (b'{"model": "\\ud800", "query": "", "documents": []}', "model is not valid"),
            ):
                assert words in text_of(path, client.post(path, content=content), 400)


def test_unknown_models_and_paths_are_a_404(server: FakeServer) -> None:
    for path in (*OLLAMA, *OPENAI):
        answer = server.post(path, good(path, model="nope"))
        assert text_of(path, answer, 404) == "model 'nope' not found"
    for path in ("/api/nope", "/v1/nope", "/v2/nope", "/v1/score/x", "/score/x"):
        assert text_of(path, server.post(path, {}), 404) == "not found"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method_is_a_405(server: FakeServer, method: str) -> None:
    with server.client() as client:
        for path in (*OLLAMA, *OPENAI):
            answer = client.request(method, path)
            assert text_of(path, answer, 405) == "method not allowed"
            assert answer.headers["allow"] == "POST"


def test_a_body_too_large_is_a_413(server: FakeServer) -> None:
    for path in (*OLLAMA, *OPENAI):
        answer = server.post(path, good(path, padding="x" * MAX_BODY_BYTES))
        text = f"the body is larger than {MAX_BODY_BYTES} bytes (max_body_bytes)"
        assert text_of(path, answer, 413) == text


@pytest.mark.parametrize("method", ["run", "tokenize_pairs", "costs"])
def test_what_fails_inside_is_a_500_without_internals_and_the_next_is_answered(
    server: FakeServer, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*arguments: object) -> None:
        raise RuntimeError(f"secret in {__file__}")

    for path in ("/api/rerank", *OPENAI):
        with monkeypatch.context() as patch:
            patch.setattr(server.model, method, explode)
            assert "secret" not in text_of(path, server.post(path, good(path)), 500)
        assert server.post(path, good(path)).status_code == 200


def test_a_model_that_cannot_be_served_is_a_503(server: FakeServer) -> None:
    for path in (*OLLAMA, *OPENAI):
        text = text_of(path, server.post(path, good(path, model="broken")), 503)
        assert text.startswith("model 'broken' cannot be served: broken/config.json: ")


def test_no_request_is_served_by_a_server_that_starts_or_drains(server: FakeServer) -> None:
    with serve_fake(ready=False) as starting:
        for path in (*OLLAMA, *OPENAI):
            answer = starting.post(path, good(path))
            assert text_of(path, answer, 503) == "starting"
            assert int(answer.headers["retry-after"]) > 0
    server.service.drain()
    for path in (*OLLAMA, *OPENAI):
        answer = server.post(path, good(path))
        assert text_of(path, answer, 503) == "the server is shutting down"


def test_a_dead_lane_is_a_503(server: FakeServer) -> None:
    assert server.service.lane is not None
    server.service.lane.stop(0.0)
    for path in (*OLLAMA, *OPENAI):
        assert text_of(path, server.post(path, good(path)), 503)


VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("embedder")
JSON = st.recursive(
    VALUE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
WEIGHTS = st.fixed_dictionaries({}, optional=dict.fromkeys(("dense", "sparse", "colbert"), VALUE))
OPTIONAL: dict[str, Any] = {
    **dict.fromkeys(("model", "top_n", "return_documents", "max_tokens_per_doc"), JSON),
    **dict.fromkeys(("truncate_prompt_tokens", "raw_scores", "use_activation"), JSON),
    **dict.fromkeys(("instruction", "keep_alive", "weights", "text_1", "text_2", "items"), JSON),
    "weights": JSON | WEIGHTS,
}
TEXTS = st.lists(st.text() | st.fixed_dictionaries({"text": st.text()}), max_size=4)
BODY = st.fixed_dictionaries(
    {"query": JSON | st.text(), "documents": JSON | TEXTS},
    optional={**OPTIONAL, "queries": JSON | TEXTS, "data_1": JSON | TEXTS, "data_2": JSON | TEXTS},
)


@pytest.mark.parametrize("path", ["/api/rerank", "/rerank", "/score"])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=BODY)
def test_no_body_is_a_server_error(patient: FakeServer, path: str, body: dict[str, Any]) -> None:
    with patient.client() as client:
        answer = client.post(path, content=json.dumps(body))
    if answer.status_code != 200:
        assert answer.status_code in (400, 404, 413)
        text_of(path, answer, answer.status_code)
