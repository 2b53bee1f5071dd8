"""/metrics: what was asked, computed and is waiting, in Prometheus' own words."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families

from tests.api.connections import send
from tests.serving.fake_engine import NAME, FakeServer, serve_fake, until
from tests.serving.fake_models import NUM_BYTES, write_model


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    write_model(tmp_path, NAME)
    write_model(tmp_path, "other")
    with serve_fake(models_dir=tmp_path) as running:
        yield running


def samples(server: FakeServer) -> dict[tuple[str, ...], float]:
    """(name, label values…) -> value."""
    answer = server.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_status(server: FakeServer) -> None:
    server.embed({"input": "a"})
    server.embed({"input": "b"})
    server.embed({"input": 5})
    server.get("/v1/models/" + NAME)
    found = samples(server)
    assert found["embedding_requests_total", "/api/embed", "200"] == 2
    assert found["embedding_requests_total", "/api/embed", "400"] == 1
    assert found["embedding_requests_total", "/v1/models/{model:path}", "200"] == 1
    assert found["embedding_request_seconds_count", "/api/embed"] == 3


def test_paths_that_clients_make_up_share_one_label(server: FakeServer) -> None:
    for path in ("/a", "/b/c", "/api/nope", "/static-offline-docs/nope"):
        server.get(path)
    routes = {key[1] for key in samples(server) if key[0] == "embedding_requests_total"}
    assert routes == {"other"}


def test_steps_tell_their_tokens_sequences_and_model(server: FakeServer) -> None:
    server.embed({"input": ["abc", "de"]})  # 5 and 4 tokens
    server.embed({"input": "x", "model": "other"})
    found = samples(server)
    assert found["embedding_tokens_total", NAME] == 9
    assert found["embedding_tokens_total", "other"] == 3
    assert found["embedding_batches_total", NAME, "done"] == 1
    assert found["embedding_batch_tokens_sum",] == 12
    assert found["embedding_batch_sequences_sum",] == 3
    assert found["embedding_wait_seconds_count",] == 2
    assert found["embedding_run_seconds_count",] == 2
    assert server.get("/health").json()["computed_tokens"] == 12


def test_a_step_that_fails_is_counted_as_failed(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*arguments: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(server.model, "run", explode)
    assert server.embed({"input": "a"}).status_code == 500
    assert samples(server)["embedding_batches_total", NAME, "failed"] == 1


def test_what_waits_is_told_while_it_waits(server: FakeServer) -> None:
    with server.held_worker():
        waiting = threading.Thread(target=server.embed, args=({"input": ["abc", "de"]},))
        waiting.start()
        server.wait_for(lambda worker: worker.num_waiting_jobs == 1)
        found = samples(server)
        assert found["embedding_queue_jobs",] == 1
        assert found["embedding_queue_tokens",] == 9
        assert found["embedding_open_requests",] == 3  # two that wait and this one
    waiting.join()
    found = samples(server)
    assert found["embedding_queue_jobs",] == 0
    assert found["embedding_queue_tokens",] == 0


def test_a_client_that_leaves_is_counted(server: FakeServer) -> None:
    with server.held_worker():
        with send(server.url, {"input": "a"}):
            server.wait_for(lambda worker: worker.num_waiting_jobs == 1)
        server.wait_for(lambda worker: worker.num_cancelled == 1)
    until(lambda: ("embedding_requests_total", "/api/embed", "499") in samples(server))
    assert samples(server)["embedding_cancelled_total",] == 1


def test_models_in_memory_are_told_with_their_bytes(server: FakeServer) -> None:
    assert samples(server)["embedding_resident_models",] == 1
    server.embed({"input": "x", "model": "other"})
    found = samples(server)
    assert found["embedding_resident_models",] == 2
    assert found["embedding_model_bytes", "other"] == NUM_BYTES
    assert found["process_resident_memory_bytes",] > 0
    server.embed({"input": "x", "model": "other", "keep_alive": 0})
    until(lambda: ("embedding_model_bytes", "other") not in samples(server))


def test_a_server_that_starts_or_drains_says_so(server: FakeServer) -> None:
    assert samples(server)["embedding_ready",] == 1
    server.server.drain()
    assert samples(server)["embedding_ready",] == 0
    with serve_fake(ready=False) as starting:
        assert samples(starting)["embedding_ready",] == 0


def test_openmetrics_is_written_for_who_asks_for_it(server: FakeServer) -> None:
    server.embed({"input": "a"})
    with server.client() as client:
        answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert {family.name for family in parse_openmetrics(answer.text)} >= {"embedding_requests"}  # type: ignore[no-untyped-call]


def test_two_servers_in_one_process_count_apart(server: FakeServer) -> None:
    server.embed({"input": "a"})
    with serve_fake() as other:
        assert ("embedding_tokens_total", NAME) not in samples(other)
