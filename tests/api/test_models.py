"""Models come into memory and leave it over HTTP, while loads are held and others are served."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.fake_engine import NAME, FakeServer, serve_fake, until
from tests.serving.fake_models import NUM_BYTES, TIMEOUT_S, write_model

RANKER = "BertForSequenceClassification"
NOT_WAITED_FOR = 0.05


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models NAME, a, b, c and `ranker`; nobody changes them."""
    folder: Path = tmp_path_factory.mktemp("models")
    for name in (NAME, *"abc"):
        write_model(folder, name)
    write_model(folder, "ranker", RANKER, max_length=200)
    return folder


@pytest.fixture
def server(root: Path) -> Iterator[FakeServer]:
    with serve_fake(models_dir=root) as running:
        yield running


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(50) as threads:
        yield threads


def use(server: FakeServer, model: str, **body: Any) -> httpx.Response:
    return server.embed({"model": model, "input": "a", **body})


def ok(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: httpx.Response) -> str:
    assert answer.status_code == 503, answer.text
    assert answer.json().keys() == {"error"}
    text: str = answer.json()["error"]
    return text


def test_a_model_is_loaded_at_its_first_use_and_stays(server: FakeServer) -> None:
    assert server.engine.loads == [NAME]
    first, second = (ok(use(server, "a")) for _ in range(2))
    assert server.engine.loads == [NAME, "a"]
    assert first["embeddings"] == second["embeddings"]
    assert first["load_duration"] == int(server.resident("a").load_s * 1e9) > 0


def test_no_input_loads_a_model(server: FakeServer) -> None:
    assert ok(server.embed({"model": "a"}))["embeddings"] == []
    assert server.resident_names == [NAME, "a"]
    assert ok(server.post("/api/rerank", {"model": "ranker", "query": "", "documents": []}))
    assert server.resident_names == [NAME, "a", "ranker"]


def test_bad_input_loads_no_model(server: FakeServer) -> None:
    for body in ({"input": 5}, {"input": ["a", 5]}, {"keep_alive": "soon"}, {"outputs": ["x"]}):
        assert use(server, "a", **body).status_code == 400
    assert server.post("/rerank", {"documents": ["a"]}).status_code == 400
    assert server.engine.loads == [NAME]


def test_fifty_first_requests_are_one_load_and_all_are_answered(
    server: FakeServer, pool: ThreadPoolExecutor
) -> None:
    with server.engine.held_loads():
        sent = [pool.submit(use, server, "a") for _ in range(50)]
        until(lambda: server.num_waiting_for_loads == 50)
    (vectors,) = {str(ok(future.result())["embeddings"]) for future in sent}
    assert vectors == str(ok(use(server, NAME))["embeddings"])
    assert server.engine.loads == [NAME, "a"]


def test_others_answer_while_a_model_loads(server: FakeServer, pool: ThreadPoolExecutor) -> None:
    ok(use(server, "b"))
    with server.engine.held_loads():
        sent = pool.submit(use, server, "a")
        assert server.engine.is_loading.wait(TIMEOUT_S)
        assert ok(server.get("/health"))["status"] == "ok"
        for model in ("", NAME, "b"):
            ok(use(server, model))
        for path in ("/api/tags", "/api/ps"):
            ok(server.get(path))
        assert not sent.done()
    ok(sent.result())


@pytest.mark.parametrize("path", ["/api/embed", "/v1/rerank"])
def test_who_waits_too_long_is_told_when_to_come_again(root: Path, path: str) -> None:
    body = {"model": "ranker", "query": "a", "documents": ["b"], "input": []}
    with serve_fake(models_dir=root, load_timeout_s=NOT_WAITED_FOR) as server:
        with server.engine.held_loads():
            answer = server.post(path, body)
            assert answer.status_code == 503
            assert "model 'ranker' is still loading" in str(answer.json())
            assert int(answer.headers["retry-after"]) > 0
            ok(use(server, NAME))
        until(lambda: "ranker" in server.resident_names)
        ok(server.post(path, body))
        assert server.engine.loads == [NAME, "ranker"]


def test_a_client_that_leaves_while_a_model_loads_harms_nobody(
    server: FakeServer, pool: ThreadPoolExecutor
) -> None:
    with server.engine.held_loads():
        with server.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post("/api/embed", json={"model": "a", "input": "left"}, timeout=NOT_WAITED_FOR)
        sent = pool.submit(use, server, "a")
        until(lambda: server.num_waiting_for_loads >= 1)
    ok(sent.result())
    until(lambda: not server.open_requests)
    assert server.resident("a").num_users == 0
    assert server.engine.steps == [("a", 1)], "for the one who stayed"
    ok(use(server, "a"))
    assert server.engine.loads == [NAME, "a"]


@pytest.mark.parametrize("keep_alive", [0, "0", "0s", 0.0])
def test_keep_alive_0_unloads_after_the_answer(server: FakeServer, keep_alive: Any) -> None:
    ok(use(server, "a", keep_alive=keep_alive))
    until(lambda: server.engine.num_releases == 1)
    assert server.resident_names == [NAME]
    ok(use(server, "a"))
    assert server.engine.loads == [NAME, "a", "a"]


@pytest.mark.parametrize("path", ["/api/embed", "/api/rerank"])
@pytest.mark.parametrize(("keep_alive", "seconds"), [("5m", 300), (90, 90), (None, 1234)])
def test_keep_alive_is_how_long_a_model_stays_after_its_last_use(
    root: Path, path: str, keep_alive: Any, seconds: float
) -> None:
    with serve_fake(models_dir=root, keep_alive="1234") as server:
        body = {"model": "ranker", "query": "a", "documents": ["b"], "keep_alive": keep_alive}
        ok(server.post(path, body))
        resident = server.resident("ranker")
        assert resident.keep_alive_s == seconds
        assert resident.expires_at is not None


@pytest.mark.parametrize("keep_alive", [-1, -0.5, "-1s", "-5m", "9999999h"])
def test_a_negative_keep_alive_is_for_ever(server: FakeServer, keep_alive: Any) -> None:
    ok(use(server, "a", keep_alive=keep_alive))
    assert server.resident("a").expires_at is None


def test_a_model_that_nobody_asks_for_leaves_and_comes_again(root: Path) -> None:
    with serve_fake(models_dir=root, keep_alive=NOT_WAITED_FOR) as server:
        ok(use(server, "a"))
        until(lambda: server.resident_names == [NAME])
        ok(use(server, "a", keep_alive=-1))
        assert server.engine.loads == [NAME, "a", "a"]
        assert server.resident_names == [NAME, "a"]


def test_a_pinned_model_stays_whatever_is_asked(server: FakeServer) -> None:
    ok(use(server, NAME, keep_alive=0))
    ok(use(server, "", keep_alive="1ms"))
    assert server.resident_names == [NAME]
    assert server.resident(NAME).expires_at is None


def test_a_model_in_use_is_unloaded_only_after_its_last_user(
    server: FakeServer, pool: ThreadPoolExecutor
) -> None:
    with server.held_worker():
        sent = [pool.submit(use, server, "a", keep_alive=0) for _ in range(3)]
        server.wait_for(lambda worker: worker.num_waiting_jobs == 3)
        assert server.resident("a").num_users == 3
    for future in sent:
        ok(future.result())
    until(lambda: server.resident_names == [NAME])
    assert server.engine.loads == [NAME, "a"]


def test_the_least_recently_used_makes_room(root: Path) -> None:
    with serve_fake(models_dir=root, max_model_bytes=3 * NUM_BYTES) as server:
        for model in "aba":
            ok(use(server, model))
        ok(use(server, "c"))
        assert server.resident_names == [NAME, "a", "c"]
        assert server.engine.loads == [NAME, "a", "b", "c"]


def test_a_model_that_can_never_fit_is_refused_by_sizes_and_setting(root: Path) -> None:
    with serve_fake(models_dir=root, max_model_bytes=3 * NUM_BYTES) as server:
        ok(use(server, "a"))
        server.engine.num_bytes["b"] = 5_000_000
        assert refused(use(server, "b")) == (
            "no room for model 'b': it needs 5000000 bytes (5.0 MB), "
            "EMBEDDING_MAX_MODEL_BYTES=3000; "
            f"resident: {NAME} (1.0 kB, pinned), a (1.0 kB)"
        )
        assert server.resident_names == [NAME, "a"]
        ok(use(server, "a"))


def test_a_model_waits_for_one_in_use_to_make_room(root: Path, pool: ThreadPoolExecutor) -> None:
    with serve_fake(models_dir=root, max_model_bytes=2 * NUM_BYTES) as server:
        with server.held_worker():
            first = pool.submit(use, server, "a")
            server.wait_for(lambda worker: worker.num_waiting_jobs == 1)
            second = pool.submit(use, server, "b")
            until(lambda: server.num_waiting_for_loads == 1)
            assert server.engine.loads == [NAME, "a"]
        ok(first.result())
        ok(second.result())
        assert server.resident_names == [NAME, "b"]


def test_models_take_turns_in_a_budget_for_one_and_all_are_answered(
    root: Path, pool: ThreadPoolExecutor
) -> None:
    with serve_fake(models_dir=root, max_model_bytes=2 * NUM_BYTES) as server:
        wanted = ok(use(server, NAME, input="b c"))["embeddings"]
        sent = [pool.submit(use, server, "abc"[i % 3], input="b c") for i in range(30)]
        assert all(ok(future.result())["embeddings"] == wanted for future in sent)
        assert len(server.resident_names) == 2


@pytest.mark.parametrize("other", [NAME, "ranker"])
def test_a_query_to_one_model_passes_the_bulk_of_another(
    root: Path, pool: ThreadPoolExecutor, other: str
) -> None:
    """Texts of 16 tokens, four a step; the query comes when the first four run."""
    with serve_fake(models_dir=root, max_batch_tokens=64) as server:
        ok(use(server, "a"))
        ok(server.post("/rerank", {"query": "a", "documents": ["b"]}))
        server.engine.steps.clear()
        server.engine.may_run.clear()
        server.engine.is_running.clear()
        bulk = pool.submit(use, server, "a", input=["x" * 13 + chr(97 + i) for i in range(20)])
        assert server.engine.is_running.wait(TIMEOUT_S)
        path = "/api/rerank" if other == "ranker" else "/api/embed"
        body = {"model": other, "input": "a", "query": "a", "documents": ["b"]}
        query = pool.submit(server.post, path, body)
        server.wait_for(lambda worker: worker.num_waiting_jobs == 2)
        server.engine.may_run.set()
        ok(query.result())
        assert len(ok(bulk.result())["embeddings"]) == 20
        assert server.engine.steps == [("a", 4), (other, 1), *[("a", 4)] * 4]
