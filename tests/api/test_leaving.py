"""A client that leaves takes what has not started with it, on every route that computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.connections import send
from tests.api.known_routes import WORK
from tests.serving.fake_engine import NAME, FakeServer, serve_fake, until
from tests.serving.fake_models import write_model

TEXTS = ["abc", "de", "fgh"]
NOT_QUEUED = {"/tokenize", "/v1/tokenize", "/decode", "/api/generate"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": TEXTS},
    "/embeddings": {"input": TEXTS},
    "/api/embed": {"input": TEXTS},
    "/api/embeddings": {"prompt": "abc"},
    "/embed": {"inputs": TEXTS},
    "/embed_sparse": {"inputs": TEXTS},
    "/embed_all": {"inputs": TEXTS},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": TEXTS}},
    "/rerank": {"query": "a", "documents": TEXTS},
    "/v1/rerank": {"query": "a", "documents": TEXTS},
    "/v2/rerank": {"query": "a", "documents": TEXTS},
    "/api/rerank": {"query": "a", "documents": TEXTS},
    "/score": {"text_1": "a", "text_2": TEXTS},
    "/v1/score": {"text_1": "a", "text_2": TEXTS},
}
CALLS = [*BODIES.items(), ("/rerank", {"query": "a", "texts": TEXTS})]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    root: Path = tmp_path_factory.mktemp("models")
    write_model(root, NAME, has_heads=True)
    write_model(root, "ranker", "BertForSequenceClassification")
    with serve_fake(models_dir=root, pinned=[NAME, "ranker"]) as running:
        yield running


def num_left(server: FakeServer, path: str) -> int:
    line = f'embedding_requests_total{{route="{path}",status="499"}} '
    found = [text for text in server.get("/metrics").text.splitlines() if text.startswith(line)]
    return int(float(found[0].removeprefix(line))) if found else 0


def test_every_route_that_computes_is_tried() -> None:
    assert set(BODIES) == WORK - NOT_QUEUED


@pytest.mark.parametrize(("path", "body"), CALLS)
def test_what_waits_goes_with_its_client(
    server: FakeServer, path: str, body: dict[str, Any]
) -> None:
    worker, admission = server.serving.worker, server.serving.admission
    until(lambda: len(worker._jobs) == 0)
    num_cancelled, num_steps, num_told = (
        worker.num_cancelled,
        worker.num_batches,
        num_left(server, path),
    )
    with server.held_worker():
        connection = send(server.url, body, path)
        until(lambda: worker.num_waiting_jobs == 1)
        connection.close()
        until(lambda: worker.num_waiting_jobs == 0)
        assert worker.num_waiting_tokens == 0
        assert worker.num_cancelled == num_cancelled + 1
    until(lambda: len(worker._jobs) == 0 and admission.num_requests == 0)
    assert worker.num_batches == num_steps + 1, "what held the worker, and nothing else"
    until(lambda: num_left(server, path) == num_told + 1)
