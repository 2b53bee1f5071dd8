"""Ollama's calls that only look, and its older one that embeds: show, version, embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.version import server_version
from tests.api.error_shapes import fault_of
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import (
    DIM,
    END,
    START,
    FakeTokens,
    views_of,
    write_broken,
    write_model,
)

NAME = "embedder"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    root: Path = tmp_path_factory.mktemp("models")
    write_model(root, NAME, max_length=64)
    write_model(root, "ranker", "BertForSequenceClassification", max_length=32)
    write_broken(root, "broken")
    with serve_fake(models_dir=root, pinned=[NAME]) as running:
        yield running


def ask(server: FakeServer, path: str, **body: Any) -> dict[str, Any]:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    return read


def refused(server: FakeServer, path: str, body: Any, status: int = 400) -> str:
    with server.client() as client:
        answer = client.post(path, content=json.dumps(body))
    return fault_of(answer, "ollama", status).text


def test_show_tells_what_ollamas_clients_read(server: FakeServer) -> None:
    shown = ask(server, "/api/show", model=NAME)
    assert shown["capabilities"] == ["embedding"]
    assert shown["details"]["family"] == "bert"
    assert shown["details"]["families"] == ["bert"]
    assert {"format", "parameter_size", "quantization_level"} < shown["details"].keys()
    assert shown["model_info"]["general.architecture"] == "bert"
    assert shown["model_info"]["bert.context_length"] == 64
    assert shown["model_info"]["bert.embedding_length"] == DIM
    assert isinstance(shown["model_info"]["general.parameter_count"], int)
    assert datetime.fromisoformat(shown["modified_at"]).tzinfo is not None
    for name in ("license", "modelfile", "parameters", "template"):
        assert isinstance(shown[name], str)


def test_show_and_tags_agree(server: FakeServer) -> None:
    for tag in server.get("/api/tags").json()["models"]:
        shown = ask(server, "/api/show", model=tag["name"])
        assert (shown["details"], shown["modified_at"]) == (tag["details"], tag["modified_at"])


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": None},
        {"model": f"{NAME}:latest"},
        {"name": NAME},
        {"name": f"org/{NAME}", "verbose": True},
        {"model": NAME, "name": "ranker"},
    ],
    ids=str,
)
def test_show_takes_a_model_by_each_of_its_names(server: FakeServer, body: Any) -> None:
    assert ask(server, "/api/show", **body) == ask(server, "/api/show", model=NAME)


def test_a_reranker_is_shown_as_one_and_not_loaded(server: FakeServer) -> None:
    shown = ask(server, "/api/show", model="ranker")
    assert shown["capabilities"] == ["rerank"]
    assert "bert.embedding_length" not in shown["model_info"]
    assert shown["model_info"]["bert.context_length"] == 32
    assert server.resident_names == [NAME]


def test_show_refuses_what_is_not_there_or_cannot_be_served(server: FakeServer) -> None:
    assert refused(server, "/api/show", {"model": "nope"}, 404) == "model 'nope' not found"
    assert refused(server, "/api/show", {"name": "nope"}, 404) == "model 'nope' not found"
    text = refused(server, "/api/show", {"model": "broken"})
    assert text.startswith("model 'broken' cannot be served: broken/config.json")
    assert "name: " in refused(server, "/api/show", {"name": 5})


def test_version_is_the_servers_own(server: FakeServer) -> None:
    answer = server.get("/api/version")
    assert answer.status_code == 200
    assert answer.json() == {"version": server_version()}
    assert answer.json()["version"][0].isdigit()


def pooled(text: str) -> list[float]:
    """As the fake makes them: of no particular length."""
    rows = views_of(FakeTokens([START, *map(ord, text), END])).dense
    values: list[float] = rows.tolist()
    return values


def test_the_older_call_answers_one_vector_as_pooled(server: FakeServer) -> None:
    answer = ask(server, "/api/embeddings", model=NAME, prompt="hello")
    assert answer.keys() == {"embedding"}
    got = np.array(answer["embedding"], np.float32)
    np.testing.assert_array_equal(got, np.array(pooled("hello"), np.float32))
    assert abs(np.linalg.norm(got) - 1) > 1e-3
    unit = np.array(ask(server, "/api/embed", input="hello")["embeddings"][0], np.float32)
    np.testing.assert_allclose(got / np.linalg.norm(got), unit, atol=1e-6)


@pytest.mark.parametrize("body", [{}, {"prompt": None}, {"prompt": ""}])
def test_the_older_call_without_a_prompt_loads_only(server: FakeServer, body: Any) -> None:
    assert ask(server, "/api/embeddings", **body) == {"embedding": []}


def test_the_older_call_takes_ollamas_options(server: FakeServer) -> None:
    cut = ask(server, "/api/embeddings", prompt="abcdef", options={"num_ctx": 5})
    assert cut == ask(server, "/api/embeddings", prompt="abc")
    nulls = dict.fromkeys(("model", "options", "truncate", "keep_alive"))
    assert ask(server, "/api/embeddings", prompt="abc", **nulls) == cut


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": 5}, "prompt: "),
        ({"prompt": ["a"]}, "prompt: "),
        ({"prompt": "\ud800"}, "prompt is not valid Unicode"),
        ({"prompt": "x" * 99, "truncate": False}, "the input length exceeds the context length"),
        ({"prompt": "a", "model": "ranker"}, "is a reranker"),
        ({"prompt": "a", "keep_alive": "soon"}, "keep_alive: "),
    ],
    ids=ascii,
)
def test_the_older_call_refuses_bad_input(server: FakeServer, body: Any, words: str) -> None:
    assert words in refused(server, "/api/embeddings", body)
