"""The OpenAPI document: references resolve, examples are answered, and answers are as described."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from embedding import create_app
from tests.api.error_shapes import dialect_by_path, fault_of
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import write_model

ERRORS = {"ollama": "ErrorBody", "openai": "OpenAIErrorBody", "tei": "TEIErrorBody"}
NO_DIALECT = {"/", "/health", "/live", "/ready", "/metrics"}  # a state, or no JSON at all
DOCUMENT = create_app().openapi()


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path, as the document has it."""

    method: str
    path: str
    entry: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def examples(self) -> dict[str, Any]:
        """Request bodies by name."""
        content = self.entry.get("requestBody", {}).get("content", {}).get("application/json", {})
        return {name: one["value"] for name, one in content.get("examples", {}).items()}

    def content(self, status: str) -> dict[str, Any]:
        content: dict[str, Any] = self.entry["responses"][status].get("content", {})
        return content


OPERATIONS = [
    Operation(method, path, entry)
    for path, methods in DOCUMENT["paths"].items()
    for method, entry in methods.items()
]
SPEAKING = [operation for operation in OPERATIONS if operation.path not in NO_DIALECT]
EXAMPLES = [
    pytest.param(operation, body, id=f"{operation} {name}")
    for operation in OPERATIONS
    for name, body in (operation.examples or {"no body": None}).items()
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    """The default has every output, as bge-m3 has; there is a reranker too."""
    root: Path = tmp_path_factory.mktemp("models")
    write_model(root, "bge-m3", max_length=64, has_heads=True)
    write_model(root, "bge-reranker-v2-m3", "BertForSequenceClassification", max_length=64)
    with serve_fake(models_dir=root, pinned=["bge-m3"]) as running:
        yield running


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


def faults(value: Any, schema: dict[str, Any]) -> list[str]:
    """What of `value` is not as the schema says."""
    whole = {**schema, "components": DOCUMENT["components"]}
    validator = jsonschema_rs.Draft202012Validator(whole)
    return [str(error) for error in validator.iter_errors(value)]


def test_every_reference_in_the_document_resolves() -> None:
    found = list(references(DOCUMENT))
    assert found, "the answers are described by reference"
    assert [ref for ref in found if not resolves(DOCUMENT, ref)] == []


def test_the_document_is_as_openapi_wants_it() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    names = [operation.entry["operationId"] for operation in OPERATIONS]
    assert len(set(names)) == len(names)
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_every_operation_has_a_summary_and_examples(operation: Operation) -> None:
    assert operation.entry["summary"]
    assert len(operation.entry["tags"]) == 1
    if operation.method == "post":
        assert operation.entry["requestBody"]["required"] is True
        assert operation.examples
    content = operation.content("200")
    assert content
    assert any("example" in kind for kind in content.values())


@pytest.mark.parametrize("operation", SPEAKING, ids=str)
def test_every_example_of_an_answer_is_as_its_schema_says(operation: Operation) -> None:
    described = operation.content("200")["application/json"]
    assert faults(described["example"], described["schema"]) == []


@pytest.mark.parametrize("operation", SPEAKING, ids=str)
def test_every_error_is_described_in_its_dialect(operation: Operation) -> None:
    dialect = dialect_by_path(operation.path)
    invalid = "422" if dialect == "tei" else "400"
    assert set(operation.entry["responses"]) >= {
        "200",
        invalid,
        "401",
        "404",
        "413",
        "429",
        "503",
        "default",
    }
    for status, response in operation.entry["responses"].items():
        assert response["description"]
        if status != "200":
            schema = operation.content(status)["application/json"]["schema"]
            assert schema == {"$ref": f"#/components/schemas/{ERRORS[dialect]}"}


@pytest.mark.parametrize(("operation", "body"), EXAMPLES)
def test_every_example_is_answered_as_described(
    server: FakeServer, operation: Operation, body: Any
) -> None:
    path = operation.path.replace("{model}", "bge-m3")
    with server.client() as client:
        answer = client.request(operation.method, path, json=body)
    assert answer.status_code == 200, answer.text
    kind = answer.headers["content-type"].partition(";")[0]
    described = operation.content("200")[kind]
    if kind == "application/json":
        assert faults(answer.json(), described.get("schema", {})) == []


@pytest.mark.parametrize("operation", [o for o in SPEAKING if o.examples], ids=str)
def test_every_example_is_as_its_schema_says(operation: Operation) -> None:
    schema = operation.entry["requestBody"]["content"]["application/json"]["schema"]
    described = [faults(body, schema) for body in operation.examples.values()]
    assert [] in described, "at least one: /tokenize has two forms, and describes one"
    known = set(schema["properties"])
    assert [set(body) <= known for body in operation.examples.values()].count(True) > 0


@pytest.mark.parametrize("operation", [o for o in SPEAKING if o.examples], ids=str)
def test_an_error_is_as_its_schema_says(server: FakeServer, operation: Operation) -> None:
    dialect = dialect_by_path(operation.path)
    for body, status in (({"model": "nope"}, 404), ({"model": 5}, 400)):
        example = next(iter(operation.examples.values()))
        answer = server.post(operation.path, {**example, **body})
        fault_of(answer, dialect, status)
        described = operation.content(str(answer.status_code))["application/json"]
        assert faults(answer.json(), described["schema"]) == []


def test_embed_describes_its_body_its_answer_and_its_errors() -> None:
    route = DOCUMENT["paths"]["/api/embed"]["post"]
    body = route["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) >= {"input", "model", "options", "keep_alive", "dimensions"}
    assert "num_ctx" in body["properties"]["options"]["anyOf"][0]["properties"]
    kinds = {kind["type"] for kind in body["properties"]["keep_alive"]["anyOf"]}
    assert kinds == {"number", "string", "null"}
    assert set(body["properties"]) >= {"outputs", "sparse_keys", "prompt_name", "instruction"}
    assert set(route["responses"]) >= {"200", "400", "404", "413", "503"}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/embeddings", {"input", "encoding_format", "dimensions", "user", "outputs"}),
        ("/v1/embeddings", {"truncate_prompt_tokens", "truncation_side", "add_special_tokens"}),
        ("/api/rerank", {"query", "documents", "top_n", "keep_alive"}),
        ("/rerank", {"query", "documents", "top_n", "weights", "instruction"}),
        ("/score", {"text_1", "text_2", "queries", "items", "weights"}),
        ("/embed", {"inputs", "truncate", "truncation_direction", "normalize", "dimensions"}),
        ("/similarity", {"inputs", "parameters"}),
        ("/decode", {"ids", "skip_special_tokens"}),
        ("/tokenize", {"inputs", "add_special_tokens", "prompt_name"}),
    ],
)
def test_bodies_describe_their_fields(path: str, fields: set[str]) -> None:
    route = DOCUMENT["paths"][path]["post"]
    body = route["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) >= fields
