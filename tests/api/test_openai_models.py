"""GET /v1/models and /v1/models/{id}: what OpenAI's clients learn of the models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.error_shapes import fault_of
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import write_broken, write_model

NAME = "my-embedder"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    root: Path = tmp_path_factory.mktemp("models")
    write_model(root, NAME, max_length=64)
    write_model(root, "a-ranker", "BertForSequenceClassification", max_length=32)
    write_broken(root, "broken")
    with serve_fake(models_dir=root, pinned=[NAME]) as running:
        yield running


def get(server: FakeServer, path: str) -> dict[str, Any]:
    answer = server.get(path)
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    return read


def test_the_list_has_what_can_be_served_with_the_default_first(server: FakeServer) -> None:
    answer = get(server, "/v1/models")
    assert answer.keys() == {"object", "data"}
    assert answer["object"] == "list"
    assert [card["id"] for card in answer["data"]] == [NAME, "a-ranker"]
    assert [card["max_model_len"] for card in answer["data"]] == [64, 32]
    for card in answer["data"]:
        assert card.keys() == {"id", "object", "created", "owned_by", "max_model_len"}
        assert card["object"] == "model"
        config = server.models_dir / card["id"] / "config.json"
        assert card["created"] == int(config.stat().st_mtime)
        assert isinstance(card["owned_by"], str)


@pytest.mark.parametrize(
    "asked",
    [
        *(NAME, NAME.upper(), f"{NAME}:latest", f"org/{NAME}", f"org/{NAME}:latest"),
        *(f"org%2F{NAME}", f"/models/{NAME}", f"{NAME}/", f"a/b/c/{NAME}"),
    ],
)
def test_a_model_is_found_by_each_of_its_names(server: FakeServer, asked: str) -> None:
    assert get(server, f"/v1/models/{asked}") == get(server, "/v1/models")["data"][0]


@pytest.mark.parametrize(
    "asked", ["nope", "org/nope", f"{NAME}:v2", f"{NAME}/x", "%2e%2e", "%00", "天", "x" * 5000]
)
def test_an_unknown_model_is_a_404(server: FakeServer, asked: str) -> None:
    fault = fault_of(server.get(f"/v1/models/{asked}"), "openai", 404)
    assert fault.text.endswith(" not found")
    assert (fault.param, fault.code) == ("model", "model_not_found")


def test_a_model_that_cannot_be_served_is_a_404_with_the_reason(server: FakeServer) -> None:
    fault = fault_of(server.get("/v1/models/broken"), "openai", 404)
    assert fault.text.startswith("model 'broken' cannot be served: broken/config.json")
    assert fault.param == "model"


def test_no_model_is_loaded_to_be_listed(server: FakeServer) -> None:
    get(server, "/v1/models/a-ranker")
    assert server.resident_names == [NAME]


def test_a_model_that_comes_is_listed(tmp_path: Path) -> None:
    write_model(tmp_path, NAME)
    with serve_fake(models_dir=tmp_path, pinned=[NAME]) as server:
        write_model(tmp_path, "new")
        assert [card["id"] for card in get(server, "/v1/models")["data"]] == [NAME, "new"]
