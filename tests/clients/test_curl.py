"""curl as people type it: no model, and `-d`, which calls the JSON a form."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.clients.expected import MINILM, TEXTS, ExpectedVectors
from tests.servers import Server

TEXT = TEXTS[0]


def curl(server: Server, path: str, body: dict[str, Any]) -> Any:
    command = ["curl", "-sS", "--noproxy", "*", f"{server.url}{path}", "-d", json.dumps(body)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)


def test_curl_without_a_model_or_a_content_type_gets_the_default_models_vector(
    server: Server, vectors: ExpectedVectors
) -> None:
    answer = curl(server, "/api/embed", {"input": TEXT})
    assert answer["model"] == MINILM
    vectors.check(answer["embeddings"], [TEXT])


@pytest.mark.parametrize(
    ("path", "field"), [("/v1/embeddings", "input"), ("/embeddings", "input"), ("/embed", "inputs")]
)
def test_curl_needs_no_content_type_in_any_dialect(
    server: Server, vectors: ExpectedVectors, path: str, field: str
) -> None:
    answer = curl(server, path, {field: TEXT})
    got = answer if path == "/embed" else [item["embedding"] for item in answer["data"]]
    vectors.check(got, [TEXT])
