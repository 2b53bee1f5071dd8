"""Models while they run: unloading waits for the step; /api/generate; limits of one request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.errors import ModelError
from engine.folder.store import ModelFolder
from serving.configuration import read_settings
from serving.models.resident import NoRoom
from serving.server import Server
from tests.serving.fake_engine import NAME, FakeServer, serve_fake, until
from tests.serving.fake_models import write_model

NOT_WAITED_FOR = 0.2


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    for name in (NAME, "a"):
        write_model(tmp_path, name)
    with serve_fake(models_dir=tmp_path, max_request_tokens=100) as running:
        yield running


def test_a_model_stays_until_its_step_has_ended_though_its_client_has_left(
    server: FakeServer,
) -> None:
    assert server.embed({"model": "a", "input": []}).status_code == 200
    server.engine.may_run.clear()
    server.engine.is_running.clear()
    body = {"model": "a", "input": "left", "keep_alive": 0}
    with server.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/api/embed", json=body, timeout=NOT_WAITED_FOR)
    assert server.engine.is_running.wait(10)
    until(lambda: not server.open_requests)
    assert server.resident("a").model is not None
    assert server.resident("a").num_users == 1, "the step"
    server.engine.may_run.set()
    until(lambda: "a" not in server.resident_names)


def test_generate_loads_and_unloads_as_ollamas_clients_ask(server: FakeServer) -> None:
    loaded = server.post("/api/generate", {"model": "a"})
    assert (loaded.json()["done_reason"], loaded.json()["response"]) == ("load", "")
    assert "a" in server.resident_names
    gone = server.post("/api/generate", {"model": "a", "prompt": "", "keep_alive": 0})
    assert gone.json()["done_reason"] == "unload"
    until(lambda: "a" not in server.resident_names)


@pytest.mark.parametrize(
    ("body", "status"),
    [({"model": "a", "prompt": "hello"}, 400), ({"model": "nope"}, 404)],
)
def test_generate_refuses_what_it_cannot_do(
    server: FakeServer, body: dict[str, Any], status: int
) -> None:
    assert server.post("/api/generate", body).status_code == status


@pytest.mark.parametrize("path", ["/api/embed", "/rerank"])
def test_the_tokens_of_one_request_have_a_limit(server: FakeServer, path: str) -> None:
    texts = [f"{i:012}" for i in range(200)]  # 14 tokens each, counted part by part
    refused = server.post(path, {"input": texts, "query": "q", "documents": texts})
    assert refused.status_code == 400
    assert "tokens or more, the limit is 100 (max_request_tokens)" in refused.text


@pytest.mark.parametrize("wrong", [{"outputs": ["colbert"]}, {"prompt_name": "nope"}])
def test_what_can_only_be_refused_loads_no_model(server: FakeServer, wrong: dict[str, Any]) -> None:
    refused = server.embed({"model": "a", "input": "x", **wrong})
    assert refused.status_code == 400
    assert "a" not in server.engine.loads


class Loads:
    """A stand-in for Residents: what `pin` raises, by name."""

    def __init__(self, **faults: Exception) -> None:
        self.faults, self.tried = faults, list[str]()

    async def pin(self, folder: ModelFolder) -> None:
        self.tried.append(folder.name)
        if fault := self.faults.get(folder.name):
            raise fault


FOLDERS = [ModelFolder(name, Path(name)) for name in ("big", "small")]


@pytest.mark.parametrize("fault", [NoRoom("no room"), ModelError("torn")])
def test_where_none_is_named_the_first_that_loads_is_the_default(fault: Exception) -> None:
    loads: Any = Loads(big=fault)
    pinned = asyncio.run(
        Server(read_settings(_env_file=None))._pin(loads, FOLDERS, all_of_them=False)
    )
    assert pinned == FOLDERS[1:]


@pytest.mark.parametrize("fault", [NoRoom("no room"), ModelError("torn")])
def test_a_model_that_is_named_must_load(fault: Exception) -> None:
    loads: Any = Loads(small=fault)
    with pytest.raises(type(fault)):
        asyncio.run(Server(read_settings(_env_file=None))._pin(loads, FOLDERS, all_of_them=True))
    assert loads.tried == ["big", "small"]


def test_a_model_has_the_same_digest_in_memory_as_on_disk(server: FakeServer) -> None:
    server.post("/api/generate", {"model": "a"})
    on_disk = {tag["name"]: tag["digest"] for tag in server.get("/api/tags").json()["models"]}
    running = {tag["name"]: tag["digest"] for tag in server.get("/api/ps").json()["models"]}
    assert running
    assert running.items() <= on_disk.items()
