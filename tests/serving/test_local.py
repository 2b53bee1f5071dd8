"""The Python door: a server in this process, without HTTP, with the same answers as over it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batcher.worker import WorkerClosed
from engine.errors import TextTooLong
from serving import local
from serving.errors import InvalidRequest, NotFound, NotReady, Overloaded, TooLate, Unavailable
from serving.local import AsyncLocalServer, LocalServer
from serving.server import CannotStart, Server
from settings import Settings
from tests.servers import ROOT, clean_environment
from tests.servers import Server as HttpServer
from tests.serving.fake_engine import engine_of, serve_fake
from tests.serving.fake_models import DIM, MAX_LENGTH, FakeEngine, raw_score, relevance, write_model

TEXTS = ["abc", "", "de", "abc"]

WITHOUT_HTTP = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fastapi", "starlette", "uvicorn"):
            raise AssertionError(name + " is imported")

sys.meta_path.insert(0, Refuse())
from serving.local import LocalServer
import numpy as np

texts = json.load(sys.stdin)
with LocalServer(models_dir="/nonexistent") as server:
    vectors = server.embed(texts)
    scores = server.score(texts[0], texts[:5])
    server.close()
    server.close()
np.save(sys.argv[1], vectors)
print(json.dumps([float(score) for score in scores]))
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine of every local server of the test."""
    made = FakeEngine()

    def server(settings: Settings) -> Server:
        return Server(settings, lambda settings: engine_of(made))

    monkeypatch.setattr(local, "Server", server)
    return made


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    write_model(tmp_path, "embedder", has_heads=True, prompts={"query": "q:"})
    write_model(tmp_path, "judge", "BertForSequenceClassification", max_length=100)
    return tmp_path


@pytest.fixture
def options(fake: FakeEngine, models_dir: Path) -> dict[str, object]:
    return {"model": "embedder", "models_dir": models_dir, "_env_file": None}


def test_a_thousand_texts_equal_the_http_answer_bit_for_bit_without_fastapi(
    stand_in_server: HttpServer, tmp_path: Path
) -> None:
    texts = [f"text {i} about {'sea ' * (i % 40)}" for i in range(1000)]
    file = tmp_path / "vectors.npy"
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_HTTP, str(file)],
        input=json.dumps(texts),
        cwd=ROOT,
        env=clean_environment({}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    answer = stand_in_server.embed({"input": texts}).json()["embeddings"]
    np.testing.assert_array_equal(np.load(file), np.asarray(answer, np.float32))
    assert len(json.loads(run.stdout)) == 5


def test_texts_become_rows_and_documents_scores_in_their_order(options: dict[str, object]) -> None:
    with LocalServer(**options) as server:  # type: ignore[arg-type]
        vectors = server.embed(TEXTS)
        assert (vectors.shape, vectors.dtype) == ((4, DIM), np.float32)
        np.testing.assert_array_equal(vectors[0], vectors[3])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        np.testing.assert_array_equal(server.embed("abc"), vectors[:1])
        scores = server.score("ab", ["abx", "c"])
        assert scores == pytest.approx([relevance("ab", "abx"), relevance("ab", "c")])
        raw = server.score("ab", ["abx", "c"], raw_scores=True)
        assert raw == pytest.approx([raw_score("ab", "abx"), raw_score("ab", "c")])


def test_the_options_are_those_of_the_routes(options: dict[str, object], models_dir: Path) -> None:
    body = {"input": TEXTS, "prompt_name": "query", "dimensions": 3, "outputs": ["dense", "sparse"]}
    with serve_fake(models_dir=models_dir, pinned=["embedder"]) as http:
        wanted = http.embed(body).json()
    with LocalServer(**options) as server:  # type: ignore[arg-type]
        got = server.embed(
            TEXTS, prompt_name="query", dimensions=3, outputs=["dense", "sparse"], keep_alive=1
        )
    np.testing.assert_array_equal(got["dense"], np.asarray(wanted["embeddings"], np.float32))
    assert got["sparse"] == [
        {key: np.float32(value) for key, value in row.items()} for row in wanted["sparse"]
    ]


def test_its_limits_and_errors_are_the_servers(options: dict[str, object]) -> None:
    with LocalServer(**options, max_inputs=3) as server:  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match=r"texts has 4 texts, the limit is 3"):
            server.embed(TEXTS)
        with pytest.raises(InvalidRequest, match=r"texts\[1\] is not a string"):
            server.embed(["a", 5])  # type: ignore[list-item]
        with pytest.raises(NotFound, match="'nope' not found"):
            server.embed("a", model="nope")
        with pytest.raises(TextTooLong):
            server.embed("a" * MAX_LENGTH, truncate=False)
        with pytest.raises(InvalidRequest, match="dimensions must be 1 to 8, not 9"):
            server.embed("a", dimensions=9)
        with pytest.raises(InvalidRequest, match="'judge' is a reranker"):
            server.embed("a", model="judge")


def test_what_is_not_done_in_time_is_given_up(options: dict[str, object], fake: FakeEngine) -> None:
    with LocalServer(**options) as server:  # type: ignore[arg-type]
        fake.may_run.clear()
        try:
            with pytest.raises(TooLate, match=r"not done within 0.05 s \(timeout_s\)"):
                server.embed("a", timeout_s=0.05)
        finally:
            fake.may_run.set()
        assert len(server.embed("a")) == 1


def test_a_full_queue_refuses_here_too(options: dict[str, object], fake: FakeEngine) -> None:
    with LocalServer(**options, max_queue_requests=1) as server:  # type: ignore[arg-type]
        fake.may_run.clear()
        fake.is_running.clear()
        first = threading.Thread(target=server.embed, args=("a",))
        first.start()
        try:
            assert fake.is_running.wait(60)
            with pytest.raises(Overloaded, match="the limit is 1"):
                server.embed("b")
        finally:
            fake.may_run.set()
            first.join()


def test_it_closes_when_the_block_raises_and_twice(options: dict[str, object]) -> None:
    with pytest.raises(KeyError), LocalServer(**options) as server:  # type: ignore[arg-type]
        raise KeyError
    server.close()
    with pytest.raises(Unavailable, match="not running"):
        server.embed("a")
    assert not [t for t in threading.enumerate() if t.name in ("local-server", "worker")]


def test_whoever_still_waits_is_told_when_it_closes(
    options: dict[str, object], fake: FakeEngine
) -> None:
    told: list[Exception] = []

    def ask(text: str) -> None:
        try:
            server.embed(text)
        except Exception as error:
            told.append(error)

    with LocalServer(**options) as server:  # type: ignore[arg-type]
        fake.may_run.clear()
        fake.is_running.clear()
        callers = [threading.Thread(target=ask, args=(text,)) for text in ("a", "b", "c")]
        for caller in callers:
            caller.start()
        assert fake.is_running.wait(60)
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    fake.may_run.set()
    assert {type(error) for error in told} <= {WorkerClosed, NotReady, Unavailable}
    assert len(told) == 3


def test_what_cannot_start_says_why(options: dict[str, object]) -> None:
    with (
        pytest.raises(CannotStart, match="EMBEDDING_MODEL=nope"),
        LocalServer(
            **{**options, "model": "nope"}  # type: ignore[arg-type]
        ),
    ):
        pass


def test_the_asyncio_twin_answers_the_same(options: dict[str, object]) -> None:
    async def ask() -> Any:
        async with AsyncLocalServer(**options) as server:  # type: ignore[arg-type]
            return await asyncio.gather(server.embed(TEXTS), server.score("ab", ["abx"]))

    vectors, scores = asyncio.run(ask())
    with LocalServer(**options) as server:  # type: ignore[arg-type]
        np.testing.assert_array_equal(vectors, server.embed(TEXTS))
        np.testing.assert_array_equal(scores, server.score("ab", ["abx"]))
