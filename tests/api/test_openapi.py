"""The OpenAPI document: every reference resolves, so that /docs, /redoc and generators work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from embedding import create_app


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolves(document: dict[str, Any], reference: str) -> bool:
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def test_every_reference_in_the_document_resolves() -> None:
    document = create_app().openapi()
    found = list(references(document))
    assert found, "the answers are described by reference"
    assert [ref for ref in found if not resolves(document, ref)] == []


def test_embed_describes_its_body_its_answer_and_its_errors() -> None:
    route = create_app().openapi()["paths"]["/api/embed"]["post"]
    body = route["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) >= {"input", "model", "options", "keep_alive", "dimensions"}
    assert "num_ctx" in body["properties"]["options"]["anyOf"][0]["properties"]
    kinds = {kind["type"] for kind in body["properties"]["keep_alive"]["anyOf"]}
    assert kinds == {"number", "string", "null"}
    assert set(body["properties"]) >= {"outputs", "sparse_keys", "prompt_name", "instruction"}
    assert set(route["responses"]) >= {"200", "400", "404", "413", "503"}


@pytest.mark.parametrize(
    ("path", "fields", "error"),
    [
        ("/api/rerank", {"query", "documents", "top_n", "keep_alive"}, "ErrorBody"),
        ("/rerank", {"query", "documents", "top_n", "weights", "instruction"}, "OpenAIErrorBody"),
        ("/score", {"text_1", "text_2", "queries", "items", "weights"}, "OpenAIErrorBody"),
    ],
)
def test_rerank_and_score_describe_body_example_answer_and_errors(
    path: str, fields: set[str], error: str
) -> None:
    route = create_app().openapi()["paths"][path]["post"]
    body = route["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) >= fields
    (example,) = body["examples"]
    assert set(example) <= set(body["properties"])
    assert route["responses"]["200"]["content"]["application/json"]["schema"]
    for status in ("400", "404", "413", "503"):
        schema = route["responses"][status]["content"]["application/json"]["schema"]
        assert schema["$ref"].endswith(f"/{error}")
