"""Short jobs within long steps, in a real server: by default on the CPU, never when it is off."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.api.connections import send
from tests.servers import Server, start_server
from tests.serving.fake_engine import until

# As long as the model takes, no two alike, and far more than a few steps: nobody waits for its end.
BULK = {"input": [f"{i} " + "word " * 254 for i in range(1_000)]}


def num_preemptions(server: Server) -> float:
    with server.client() as client:
        families = text_string_to_metric_families(client.get("/metrics").text)
    (value,) = (
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "embedding_preemptions_total"
    )
    return value


def health(server: Server) -> dict[str, Any]:
    with server.client() as client:
        told: dict[str, Any] = client.get("/health").json()
    return told


def until_bulk_runs(server: Server) -> None:
    """Some of it waits still, and a step of it has run: the next one runs."""
    num_tokens = health(server)["computed_tokens"]
    until(lambda: health(server)["waiting_jobs"] > 0)
    until(lambda: health(server)["computed_tokens"] > num_tokens)


def ask(server: Server, text: str) -> None:
    answer = server.embed({"input": text})
    assert answer.status_code == 200
    assert len(answer.json()["embeddings"]) == 1


def test_short_queries_run_within_the_steps_of_a_bulk_request(stand_in_server: Server) -> None:
    until(lambda: health(stand_in_server)["admitted_requests"] == 0)
    before, numbers = num_preemptions(stand_in_server), itertools.count()

    def has_yielded() -> bool:
        ask(stand_in_server, f"query {next(numbers)}")
        return num_preemptions(stand_in_server) > before

    with send(stand_in_server.url, BULK):
        until_bulk_runs(stand_in_server)
        until(has_yielded)
        assert health(stand_in_server)["waiting_jobs"] > 0, "the bulk request is not over yet"
    until(lambda: health(stand_in_server)["admitted_requests"] == 0)


def test_no_step_yields_when_that_is_off_and_queries_are_answered_all_the_same(
    tmp_path: Path,
) -> None:
    with start_server(EMBEDDING_MODELS_DIR=str(tmp_path), EMBEDDING_PREEMPTION="off") as server:
        with send(server.url, BULK):
            until_bulk_runs(server)
            for number in range(3):
                ask(server, f"query {number}")
            assert health(server)["waiting_jobs"] > 0, "the bulk request is not over yet"
        assert num_preemptions(server) == 0
