"""GET /info, as text-embeddings-inference's clients read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.error_shapes import fault_of
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import write_broken, write_model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    root: Path = tmp_path_factory.mktemp("models")
    write_model(root, "embedder", max_length=64)
    write_model(root, "ranker", "BertForSequenceClassification", max_length=32)
    write_broken(root, "broken")
    with serve_fake(
        models_dir=root,
        pinned=["embedder"],
        max_inputs=77,
        max_batch_tokens=512,
        max_queue_requests=99,
    ) as running:
        yield running


def info(server: FakeServer, query: str = "") -> dict[str, Any]:
    answer = server.get(f"/info{query}")
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    return read


def test_info_tells_the_default_models_limits(server: FakeServer) -> None:
    told = info(server)
    assert told["model_id"] == "embedder"
    assert told["max_input_length"] == 64
    assert told["max_client_batch_size"] == 77
    assert told["max_batch_tokens"] == 512
    assert told["max_concurrent_requests"] == 99
    assert told["auto_truncate"] is True
    assert told["version"] == server.get("/api/version").json()["version"]


@pytest.mark.parametrize(
    ("query", "kind", "length"),
    [
        ("", "embedding", 64),
        ("?model=ranker", "reranker", 32),
        ("?model=org/ranker:latest", "reranker", 32),
        ("?model=", "embedding", 64),
    ],
)
def test_the_model_type_has_one_key_from_which_dify_tells_what_it_is(
    server: FakeServer, query: str, kind: str, length: int
) -> None:
    told = info(server, query)
    model_type = told["model_type"]
    assert len(model_type.keys()) == 1
    assert next(iter(model_type)) == kind
    assert isinstance(model_type[kind], dict)
    assert told["max_input_length"] == length


def test_info_loads_no_model(server: FakeServer) -> None:
    info(server, "?model=ranker")
    assert server.resident_names == ["embedder"]


def test_info_of_an_unknown_model_is_a_404(server: FakeServer) -> None:
    fault = fault_of(server.get("/info?model=nope"), "tei", 404)
    assert fault.text == "model 'nope' not found"


def test_info_of_a_model_that_cannot_be_served_says_why(server: FakeServer) -> None:
    fault = fault_of(server.get("/info?model=broken"), "tei", 400)
    assert fault.text.startswith("model 'broken' cannot be served: broken/config.json")
