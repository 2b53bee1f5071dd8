"""What nobody thought of: schemathesis over our own document, hypothesis on free text and numbers.

No 500, every error in its dialect's shape, every answer as described and within a bounded time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import given
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from embedding import create_app
from tests.api.error_shapes import dialect_by_path, fault_in, fault_of
from tests.api.generated import quick
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import DIM, write_model

TIMEOUT_S = 20.0
NO_DIALECT = {"/", "/health", "/live", "/ready", "/metrics"}
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
SCHEMA = schemathesis.openapi.from_dict(create_app().openapi())
OPERATIONS = [SCHEMA[path][method] for path in SCHEMA for method in SCHEMA[path]]
FUZZED = [
    pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
    for operation in OPERATIONS
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or operation.method == "post"  # what has a body can be bad
]
POSTS = [operation.path for operation in OPERATIONS if operation.method == "post"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    root: Path = tmp_path_factory.mktemp("models")
    write_model(root, "heads", max_length=64, has_heads=True, prompts={"query": "q:"})
    write_model(root, "ranker", "BertForSequenceClassification", max_length=64)
    with serve_fake(models_dir=root, pinned=["heads"], token_ids="accept") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: FakeServer) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=server.url, timeout=TIMEOUT_S, trust_env=False, verify=False
    ) as opened:
        yield opened


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        opened.trust_env = False
        yield opened


@pytest.mark.parametrize(("operation", "mode"), FUZZED)
def test_no_request_of_our_own_document_breaks_a_route(
    server: FakeServer, session: requests.Session, operation: Any, mode: GenerationMode
) -> None:
    @quick(30)
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        answer = case.call(base_url=server.url, session=session, timeout=TIMEOUT_S)
        case.validate_response(answer, checks=CHECKS)
        assert answer.headers["x-request-id"]
        if answer.status_code >= 400 and operation.path not in NO_DIALECT:
            check_shape(operation.path, answer.status_code, answer.json())

    check()


def check_shape(path: str, status: int, body: dict[str, Any]) -> None:
    """A route that serves two dialects may answer in either."""
    shared = path in ("/rerank", "/tokenize")
    dialect = dialect_by_path(path)
    if shared and "error_type" in body:
        dialect = "tei"
    elif shared and "detail" in body:
        dialect = "openai"
    fault_in(body, dialect, status)


def post(client: httpx.Client, path: str, body: Any) -> httpx.Response:
    """Through JSON escapes, so that lone surrogates are sent too; checked but for what it says."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, content=content)
    assert answer.status_code in (200, 400, 404, 413, 422), answer.text
    assert answer.headers["content-type"] == "application/json"
    if answer.status_code != 200:
        check_shape(path, answer.status_code, answer.json())
    return answer


ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=300)
LONG_TEXT = st.builds(lambda text, times: text * times, ANY_TEXT, st.integers(1, 500))
TEXTS = st.lists(ANY_TEXT, min_size=1, max_size=4) | st.tuples(LONG_TEXT).map(list)
TEXT_BODIES: dict[str, Any] = {
    "/v1/embeddings": lambda texts: {"input": texts},
    "/embed": lambda texts: {"inputs": texts},
    "/embed_sparse": lambda texts: {"inputs": texts},
    "/embed_all": lambda texts: {"inputs": texts},
    "/tokenize": lambda texts: {"inputs": texts},
    "/api/embed": lambda texts: {"input": texts},
    "/similarity": lambda texts: {"inputs": {"source_sentence": texts[0], "sentences": texts}},
    "/rerank": lambda texts: {"query": texts[0], "documents": texts},
    "/score": lambda texts: {"text_1": texts[0], "text_2": texts},
}


@pytest.mark.parametrize("path", TEXT_BODIES)
def test_any_text_is_answered_or_its_surrogate_is_named(client: httpx.Client, path: str) -> None:
    @quick(30)
    @given(texts=TEXTS)
    def check(texts: list[str]) -> None:
        answer = post(client, path, TEXT_BODIES[path](texts))
        has_lone = any(re.search("[\ud800-\udfff]", text) for text in texts)
        assert (answer.status_code == 200) is not has_lone
        assert not has_lone or "is not valid Unicode" in answer.text
        if path == "/v1/embeddings" and not has_lone:
            rows = np.array([item["embedding"] for item in answer.json()["data"]], np.float32)
            assert rows.shape == (len(texts), DIM)
            np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)

    check()


NUMBERS = (
    st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()  # json.dumps writes NaN and Infinity, which are no JSON
    | st.sampled_from([0, -0.0, 1e308, 5e-324, 2**31, 2**63, 2**64, -(2**63), "7", "1e3", "NaN"])
    | st.booleans()
    | st.none()
)
MANY = st.lists(NUMBERS | st.lists(NUMBERS, max_size=3), max_size=4)
ONE_OR_MANY = NUMBERS | MANY


def fields(*names: str, **fixed: Any) -> st.SearchStrategy[dict[str, Any]]:
    constant = {name: st.just(value) for name, value in fixed.items()}
    return st.fixed_dictionaries(constant, optional=dict.fromkeys(names, ONE_OR_MANY))


NUMBER_BODIES: dict[str, Any] = {
    "/v1/embeddings": fields("input", "dimensions", "keep_alive", "user", "model")
    | fields("dimensions", "truncate_prompt_tokens", "keep_alive", input="abc"),
    "/embed": fields("inputs", "truncate", "normalize") | fields("dimensions", inputs="abc"),
    "/tokenize": fields("inputs", "prompt", "add_special_tokens"),
    "/decode": fields("ids", "skip_special_tokens"),
    "/similarity": st.builds(lambda inner: {"inputs": inner}, fields("sentences")),
    "/api/embed": fields("input", "keep_alive") | fields("dimensions", "options", input="abc"),
    "/rerank": fields("top_n", "max_tokens_per_doc", "weights", query="a", documents=["b"]),
    "/api/rerank": fields("top_n", "documents", query="a"),
}


@pytest.mark.parametrize("path", NUMBER_BODIES)
def test_any_number_is_answered_or_refused(client: httpx.Client, path: str) -> None:
    @quick(30)
    @given(body=NUMBER_BODIES[path])
    def check(body: dict[str, Any]) -> None:
        post(client, path, body)

    check()


@quick(30)
@given(ids=st.lists(st.integers(-2, 0x110001), max_size=20) | MANY)
def test_any_ids_are_read_back_or_refused(client: httpx.Client, ids: list[Any]) -> None:
    answer = post(client, "/decode", {"ids": ids})
    if answer.status_code == 200:
        assert all(isinstance(text, str) for text in answer.json())


@pytest.mark.parametrize("path", POSTS)
def test_any_bytes_are_refused(client: httpx.Client, path: str) -> None:
    @quick(30)
    @given(body=st.binary(max_size=60) | st.binary(max_size=20).map(lambda b: b'{"input":' + b))
    def check(body: bytes) -> None:
        post(client, path, body)

    check()


MANY_FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("/decode", {"ids": ["x"] * 100_000}),
    ("/decode", {"ids": [[97], *["x"] * 9_000]}),
    ("/v1/embeddings", {"input": "a", "outputs": ["x"] * 100_000}),
    ("/v1/embeddings", {"input": [{}] * 9_000}),
    ("/api/embed", {"input": "a", "outputs": ["x"] * 100_000}),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": [5] * 9_000}}),
    ("/rerank", {"query": "a", "documents": [], "weights": dict.fromkeys(map(str, range(9_000)))}),
]


@pytest.mark.parametrize(("path", "body"), MANY_FAULTS, ids=[path for path, _ in MANY_FAULTS])
def test_many_faults_make_a_short_error(
    client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    """Else a body of a few MB costs a minute and is answered with hundreds."""
    answer = post(client, path, body)
    assert answer.status_code in (400, 422)
    assert len(answer.content) < 1000


LONE: list[tuple[str, dict[str, Any]]] = [
    *((path, {"input": "a", "prompt_name": "\ud800"}) for path in ("/v1/embeddings", "/api/embed")),
    ("/embed", {"inputs": "a", "prompt_name": "\ud800"}),
    ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["\ud800"]}}),
    (
        "/similarity",
        {
            "inputs": {"source_sentence": "a", "sentences": ["b"]},
            "parameters": {"prompt_name": "\ud800"},
        },
    ),
    ("/rerank", {"query": "a", "documents": ["b"], "weights": {"\ud800": 1}}),
    ("/rerank", {"query": "a", "documents": [{"text": "\ud800"}]}),
    ("/decode", {"ids": ["\ud800"]}),
    ("/api/embed", {"input": "a", "options": {"num_ctx": "\ud800"}}),
    ("/api/show", {"name": "\ud800"}),
]


@pytest.mark.parametrize(("path", "body"), LONE, ids=ascii)
def test_a_lone_surrogate_anywhere_is_refused(
    client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    assert post(client, path, body).status_code in (400, 422)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)


@quick(30)
@given(name=NAMES.filter(lambda name: "\n" not in name))  # which ends a path for the router
def test_any_name_of_a_model_is_known_or_not_found(client: httpx.Client, name: str) -> None:
    for path, dialect in (("/v1/models/{}", "openai"), ("/info?model={}", "tei")):
        answer = client.get(path.format(quote(name, safe="")))
        if answer.status_code != 200:
            assert name in fault_of(answer, dialect, 404).text


@quick(30)
@given(path=NAMES.map(lambda text: "/" + quote(text, safe="/")))
def test_any_path_answers_without_a_server_error(client: httpx.Client, path: str) -> None:
    for method in ("GET", "POST", "HEAD"):
        answer = client.request(method, path)
        assert answer.status_code < 500
        assert answer.headers["x-request-id"]
