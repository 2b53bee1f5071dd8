"""Which models there are, under which names, while folders come, go and break."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.fake_engine import NAME, FakeServer, serve_fake
from tests.serving.fake_models import write_broken, write_model

RANKER = "BertForSequenceClassification"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_model(tmp_path, NAME)
    return tmp_path


@pytest.fixture
def server(root: Path) -> Iterator[FakeServer]:
    write_model(root, "other")
    with serve_fake(models_dir=root) as running:
        yield running


def status(server: FakeServer, model: str) -> int:
    return server.embed({"model": model, "input": "a"}).status_code


def tags(server: FakeServer) -> list[str]:
    answer = server.get("/api/tags")
    assert answer.status_code == 200, answer.text
    return [tag["name"] for tag in answer.json()["models"]]


def failed(server: FakeServer) -> dict[str, str]:
    read: dict[str, str] = server.get("/health").json()["failed"]
    return read


def unserved(server: FakeServer, model: str) -> str:
    """The reason that a caller is told."""
    answer = server.embed({"model": model, "input": "a"})
    assert answer.status_code == 503, answer.text
    text: str = answer.json()["error"]
    assert str(server.models_dir) not in text
    return text


def reranked_by(server: FakeServer) -> Any:
    answer = server.post("/rerank", {"query": "a", "documents": ["b"]})
    assert answer.status_code == 200, answer.text
    return answer.json()["model"]


NAMES = (
    *("other", "OTHER", "other:latest", "Other:latest", "org/other", "org/other:latest"),
    *("/srv/models/other", "/srv/models/other/", "../other", "C:/models/other"),
)
NO_NAMES = (
    *("others", "other:v2", "other/x", "other ", " other", ".", "..", "other/..", ":latest"),
    *("other\x00", "other\n", "*", "other/config.json"),
)


def test_a_model_that_is_not_pinned_is_known_under_its_names(server: FakeServer) -> None:
    for name in NAMES:
        answer = server.embed({"model": name, "input": "a"})
        assert answer.status_code == 200, name
        assert answer.json()["model"] == name
    assert server.engine.loads == [NAME, "other"]


@pytest.mark.parametrize("path", ["/api/embed", "/api/rerank", "/rerank", "/v1/score"])
def test_what_is_no_name_is_not_found(server: FakeServer, path: str) -> None:
    sides = {"text_1": "a", "text_2": "b"}
    body = sides if "score" in path else {"input": "a", "query": "a", "documents": ["b"]}
    for name in NO_NAMES:
        answer = server.post(path, {**body, "model": name})
        assert answer.status_code == 404, name
        assert f"model '{name}' not found" in answer.json().values()


def test_a_folder_that_comes_is_served_without_a_restart(server: FakeServer) -> None:
    assert status(server, "new") == 404
    write_model(server.models_dir, "new")
    assert status(server, "new") == 200
    assert tags(server) == [f"{NAME}:latest", "new:latest", "other:latest"]


def test_a_folder_that_goes_is_not_found_and_what_runs_on_it_ends_well(
    server: FakeServer,
) -> None:
    assert status(server, "other") == 200
    wanted = server.embed({"model": "other", "input": ["a", "b"]}).json()["embeddings"]
    with ThreadPoolExecutor(1) as pool, server.held_worker():
        sent = pool.submit(server.embed, {"model": "other", "input": ["a", "b"]})
        server.wait_for(lambda worker: worker.num_waiting_jobs == 1)
        shutil.rmtree(server.models_dir / "other")
        assert status(server, "other") == 404
        server.engine.may_run.set()
        assert sent.result().json()["embeddings"] == wanted
    assert status(server, "other") == 404
    assert tags(server) == [f"{NAME}:latest"]


def test_a_pinned_model_outlives_its_folder(server: FakeServer) -> None:
    shutil.rmtree(server.models_dir / NAME)
    assert status(server, NAME) == 200
    assert status(server, "") == 200
    assert server.get("/health").json()["status"] == "ok"
    assert tags(server) == ["other:latest"]


def test_the_server_goes_on_without_its_models_folder(server: FakeServer) -> None:
    shutil.rmtree(server.models_dir)
    assert status(server, NAME) == 200
    assert status(server, "other") == 404
    assert tags(server) == []
    server.models_dir.mkdir()  # whoever made it removes it


def test_a_broken_folder_is_told_with_its_reason_while_others_answer(server: FakeServer) -> None:
    write_broken(server.models_dir, "broken")
    assert failed(server) == {}
    text = unserved(server, "broken")
    assert text.startswith("model 'broken' cannot be served: broken/config.json: ")
    assert list(failed(server)) == ["broken"]
    assert text.endswith(failed(server)["broken"])
    assert status(server, NAME) == status(server, "other") == 200
    assert tags(server) == [f"{NAME}:latest", "other:latest"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_other_dialects_tell_the_reason_in_their_own_shape(server: FakeServer, path: str) -> None:
    write_broken(server.models_dir, "broken")
    answer = server.post(path, {"query": "a", "documents": ["b"], "model": "broken"})
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.json()["detail"].startswith("model 'broken' cannot be served: ")


def test_a_broken_folder_that_is_mended_is_served_without_a_restart(server: FakeServer) -> None:
    write_broken(server.models_dir, "broken")
    unserved(server, "broken")
    good = (server.models_dir / "other" / "config.json").read_bytes()
    (server.models_dir / "broken" / "config.json").write_bytes(good)
    assert status(server, "broken") == 200
    assert failed(server) == {}


BREAKS: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda path: (path / "config.json").write_text("{"),
    "deep JSON": lambda path: (path / "config.json").write_text("[" * 100_000),
    "no object": lambda path: (path / "config.json").write_text("[]"),
    "another encoding": lambda path: (path / "config.json").write_bytes(b"\xff\xfe{}"),
    "architectures of another kind": lambda path: change(path, architectures=5),
    "a length that is no number": lambda path: change(path, max_position_embeddings="many"),
    "a size that is no number": lambda path: change(path, hidden_size=[]),
    "no length": lambda path: change(path, max_position_embeddings=None),
    "no weights": lambda path: (path / "model.safetensors").unlink(),
    "weights cut short": lambda path: (path / "model.safetensors").write_bytes(b"\xff" * 4),
    "a dangling link": lambda path: relink(path / "model.safetensors"),
}


def change(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **values}))


def relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone")


@pytest.mark.parametrize("how", BREAKS)
def test_no_folder_however_broken_harms_what_is_asked_of_others(
    server: FakeServer, how: str
) -> None:
    for architecture, name in ((RANKER, "a-ranker"), ("BertModel", "an-embedder")):
        BREAKS[how](write_model(server.models_dir, name, architecture).path)
    write_model(server.models_dir, "ranker", RANKER)
    assert status(server, NAME) == 200
    assert server.post("/rerank", {"query": "a", "documents": ["b"]}).status_code in (200, 503)
    assert {f"{NAME}:latest", "other:latest"} <= set(tags(server))
    for path in ("/health", "/api/ps", "/api/tags"):
        assert server.get(path).status_code == 200


def test_the_default_reranker_is_the_first_there_is_pinned_ones_before_others(
    root: Path,
) -> None:
    for name in ("a-ranker", "b-ranker"):
        write_model(root, name, RANKER)
    with serve_fake(models_dir=root) as server:
        assert reranked_by(server) == "a-ranker"
    with serve_fake(models_dir=root, pinned=[NAME, "b-ranker"]) as server:
        assert reranked_by(server) == "b-ranker"
        assert server.embed({"input": "a"}).json()["model"] == NAME


def test_a_default_that_is_a_reranker_has_no_vectors(root: Path) -> None:
    write_model(root, "ranker", RANKER)
    with serve_fake(models_dir=root, pinned=["ranker"]) as server:
        answer = server.embed({"input": "a"})
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("model 'ranker' is a reranker")
        assert status(server, NAME) == 200


def test_without_a_reranker_the_default_answers_until_one_comes(server: FakeServer) -> None:
    assert reranked_by(server) == NAME
    write_broken(server.models_dir, "a-broken")
    write_model(server.models_dir, "ranker", RANKER)
    assert reranked_by(server) == "ranker"
    shutil.rmtree(server.models_dir / "ranker")
    assert reranked_by(server) == NAME


def test_a_pinned_model_hides_a_folder_of_its_name(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for place, name in ((inside, "model"), (inside, "x"), (outside, "model")):
        place.mkdir(exist_ok=True)
        write_model(place, name)
    with serve_fake(models_dir=inside, pinned=["x"]) as server:
        assert tags(server) == ["x:latest", "model:latest"]
    (inside / "model").rename(inside / "moved")
    with serve_fake(models_dir=inside, pinned=[str(outside / "model")]) as server:
        (inside / "moved").rename(inside / "model")
        assert tags(server) == ["model:latest", "x:latest"]
        assert server.embed({"model": "model", "input": "a"}).status_code == 200
        assert server.engine.loads == ["model"]


def running(answer: httpx.Response) -> dict[str, Any]:
    return {model["name"]: model for model in answer.json()["models"]}


def test_ps_lists_what_is_in_memory_and_until_when(server: FakeServer) -> None:
    assert list(running(server.get("/api/ps"))) == [f"{NAME}:latest"]
    assert status(server, "other") == 200
    there = running(server.get("/api/ps"))
    assert there[f"{NAME}:latest"]["expires_at"].startswith("9999-")
    assert there["other:latest"]["expires_at"].startswith("20")
    assert there["other:latest"]["size"] == 1000
