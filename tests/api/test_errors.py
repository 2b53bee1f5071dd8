"""Every error has the shape of its route's dialect, whatever it is and wherever it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.error_shapes import dialect_by_path, fault_of
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import write_three

NAME = "ranker"
MAX_BODY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Call:
    """A path, a body that it answers, and the dialect that this body makes of it."""

    path: str
    dialect: str
    body: dict[str, Any]


EMBED = {"model": "embedder"}
PAIR = {"query": "a", "documents": ["b"]}
SIMILAR = {"source_sentence": "a", "sentences": ["b"]}
CALLS = [
    Call("/api/embed", "ollama", {"input": "a", **EMBED}),
    Call("/api/embeddings", "ollama", {"prompt": "a", **EMBED}),
    Call("/api/rerank", "ollama", PAIR),
    Call("/api/show", "ollama", {}),
    Call("/api/generate", "ollama", {}),
    Call("/embeddings", "openai", {"input": "a", **EMBED}),
    Call("/v1/embeddings", "openai", {"input": "a", **EMBED}),
    *(Call(path, "openai", PAIR) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
    *(Call(path, "openai", {"text_1": "a", "text_2": "b"}) for path in ("/score", "/v1/score")),
    *(Call(path, "openai", {"prompt": "a"}) for path in ("/tokenize", "/v1/tokenize")),
    *(Call(path, "tei", {"inputs": "a"}) for path in ("/tokenize", "/v1/tokenize")),
    *(Call(path, "tei", {"query": "a", "texts": ["b"]}) for path in ("/rerank", "/v1/rerank")),
    *(Call(path, "tei", {"inputs": "a", **EMBED}) for path in ("/embed", "/embed_sparse")),
    Call("/embed_all", "tei", {"inputs": "a", **EMBED}),
    Call("/similarity", "tei", {"inputs": SIMILAR, **EMBED}),
    Call("/decode", "tei", {"ids": [97]}),
]
PATHS = sorted({call.path for call in CALLS})
COMPUTING = [
    call for call in CALLS if call.path in ("/api/rerank", "/score") or "texts" in call.body
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_three(tmp_path_factory.mktemp("models"), NAME)


@pytest.fixture
def server(root: Path) -> Iterator[FakeServer]:
    with serve_fake(models_dir=root, pinned=[NAME], max_body_bytes=MAX_BODY_BYTES) as running:
        yield running


@pytest.fixture(scope="module")
def patient(root: Path) -> Iterator[FakeServer]:
    """The same for tests of many requests that leave no trace."""
    with serve_fake(models_dir=root, pinned=[NAME], max_body_bytes=MAX_BODY_BYTES) as running:
        yield running


def test_every_route_with_a_body_is_called_here(patient: FakeServer) -> None:
    document = patient.get("/openapi.json").json()["paths"]
    assert {path for path, methods in document.items() if "post" in methods} <= set(PATHS)


def test_good_input_is_answered_on_every_route(patient: FakeServer) -> None:
    for call in CALLS:
        answer = patient.post(call.path, call.body)
        assert answer.status_code == 200, (call, answer.text)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "missing request body"),
        (b"{", "invalid JSON"),
        (b"[]", "the body must be a JSON object"),
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_nobody_can_read_is_refused_as_the_path_says(
    patient: FakeServer, path: str, content: bytes, words: str
) -> None:
    with patient.client() as client:
        answer = client.post(path, content=content)
    fault = fault_of(answer, dialect_by_path(path), 400)
    assert words in fault.text
    assert (fault.param, fault.code) == (None, None)


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize(
    ("model", "words"), [(5, "model: "), ([], "model: "), ("\ud800", "model is not valid Unicode")]
)
def test_a_bad_field_is_named(patient: FakeServer, call: Call, model: Any, words: str) -> None:
    sent = json.dumps({**call.body, "model": model})
    with patient.client() as client:
        fault = fault_of(client.post(call.path, content=sent), call.dialect, 400)
    assert fault.text.startswith(words)
    assert fault.param == ("model" if call.dialect == "openai" else None)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["a", 5]}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0, **EMBED}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": "many"}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": "a", "outputs": ["warm"]}, "outputs.0"),
        ("/v1/embeddings", {"input": "a", "model": NAME}, "model"),
        ("/rerank", {"query": "a", "documents": ["b", 5]}, "documents"),
        ("/rerank", {"query": "a"}, "documents"),
        ("/rerank", {**PAIR, "max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ("/score", {"text_1": "a", "text_2": ["b", 5]}, "text_2"),
        ("/score", {"text_1": "a"}, None),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": "maybe"}, "add_special_tokens"),
    ],
    ids=str,
)
def test_openais_errors_say_which_field_is_at_fault(
    patient: FakeServer, path: str, body: dict[str, Any], param: str | None
) -> None:
    fault = fault_of(patient.post(path, body), "openai", 400)
    assert (fault.param, fault.code) == (param, None)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_texts_and_documents_together_are_refused(patient: FakeServer, path: str) -> None:
    answer = patient.post(path, {**PAIR, "texts": ["b"]})
    fault = fault_of(answer, "openai", 400)
    assert fault.text == "give documents or texts, not both"
    assert patient.post(path, {**PAIR, "texts": None}).status_code == 200
    only_texts = {"query": "a", "texts": ["b"], "documents": None}
    assert patient.post(path, only_texts).status_code == 200


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_an_unknown_model_is_a_404(patient: FakeServer, call: Call) -> None:
    fault = fault_of(patient.post(call.path, {**call.body, "model": "nope"}), call.dialect, 404)
    assert fault.text == "model 'nope' not found"
    if call.dialect == "openai":
        assert (fault.param, fault.code) == ("model", "model_not_found")


def test_an_unknown_path_is_a_404(patient: FakeServer) -> None:
    for path in ("/api/nope", "/v1/nope", "/v2/nope", "/v1/score/x", "/score/x", "/embed/x", "/x"):
        fault = fault_of(patient.post(path, {}), dialect_by_path(path), 404)
        assert fault.text == "not found"
        assert fault.code == ("not_found" if path.startswith(("/v1", "/v2")) else None)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method_is_a_405(patient: FakeServer, method: str) -> None:
    with patient.client() as client:
        for path in PATHS:
            answer = client.request(method, path)
            assert fault_of(answer, dialect_by_path(path), 405).text == "method not allowed"
            assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/x", "/info", "/api/tags", "/api/ps"])
def test_what_can_only_be_read_refuses_another_method(patient: FakeServer, path: str) -> None:
    answer = patient.post(path, {})
    assert fault_of(answer, dialect_by_path(path), 405).text == "method not allowed"
    assert answer.headers["allow"] == "GET"


def test_a_body_too_large_is_a_413(patient: FakeServer) -> None:
    for call in CALLS:
        answer = patient.post(call.path, {**call.body, "padding": "x" * MAX_BODY_BYTES})
        text = f"the body is larger than {MAX_BODY_BYTES} bytes (max_body_bytes)"
        assert fault_of(answer, dialect_by_path(call.path), 413).text == text


@pytest.mark.parametrize("method", ["run", "tokenize_pairs"])
def test_what_fails_inside_is_a_500_without_internals_and_the_next_is_answered(
    server: FakeServer, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*arguments: object) -> None:
        raise RuntimeError(f"secret in {__file__}")

    for call in COMPUTING:
        with monkeypatch.context() as patch:
            patch.setattr(server.model, method, explode)
            fault = fault_of(server.post(call.path, call.body), call.dialect, 500)
            assert "secret" not in fault.text
        assert server.post(call.path, call.body).status_code == 200


def test_a_model_that_cannot_be_served_is_a_503(server: FakeServer) -> None:
    for call in CALLS:
        if call.path == "/api/show":  # which need not load it to say so
            continue
        answer = server.post(call.path, {**call.body, "model": "broken"})
        text = fault_of(answer, call.dialect, 503).text
        assert text.startswith("model 'broken' cannot be served: broken/config.json: "), call
    shown = fault_of(server.post("/api/show", {"model": "broken"}), "ollama", 400)
    assert shown.text.startswith("model 'broken' cannot be served: ")
    told = fault_of(server.get("/info?model=broken"), "tei", 400)
    assert told.text.startswith("model 'broken' cannot be served: ")


def check_all_are_refused(server: FakeServer, reason: str) -> None:
    for call in CALLS:
        answer = server.post(call.path, call.body)
        assert fault_of(answer, dialect_by_path(call.path), 503).text == reason
        assert int(answer.headers["retry-after"]) > 0
    for path in ("/v1/models", "/v1/models/x", "/info", "/api/tags", "/api/ps"):
        answer = server.get(path)
        assert fault_of(answer, dialect_by_path(path), 503).text == reason
        assert int(answer.headers["retry-after"]) > 0


def test_no_request_is_served_by_a_server_that_starts() -> None:
    with serve_fake(ready=False) as starting:
        check_all_are_refused(starting, "starting")


def test_no_request_is_served_by_a_server_that_drains(server: FakeServer) -> None:
    server.server.drain()
    check_all_are_refused(server, "the server is shutting down")


def test_a_dead_worker_is_a_503(server: FakeServer) -> None:
    server.serving.worker.stop(0.0)
    for call in CALLS:
        fault_of(server.post(call.path, call.body), dialect_by_path(call.path), 503)


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
        fault_of(answer, dialect_by_path(path))
