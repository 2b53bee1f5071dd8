"""A folder of real models behind a real server process: all families, memory, broken folders."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from bench import random_models
from bench.loaded import load_embedder, load_reranker
from bench.random_models import SHAPES, build
from engine.devices import choose_device
from engine.fitting import LoadOptions
from engine.outputs import Outputs
from engine.text.tokens import PairLimits, TextLimits
from serving import embedding as vectors
from tests.servers import Server, start_server
from tests.serving.fake_engine import until

FLOAT32 = LoadOptions(dtype="float32")  # as the servers of tests compute
EMBEDDERS = (
    *("tiny-bert", "tiny-dense", "tiny-prompts", "tiny-xlm-roberta", "tiny-bge-m3"),
    *("tiny-qwen3", "tiny-qwen3-embedding"),
)
RERANKERS = (
    *("tiny-bert-reranker", "tiny-bge-reranker-v2-m3", "tiny-qwen3-reranker"),
    *("tiny-qwen3-reranker-untied", "tiny-qwen3-reranker-seq-cls"),
)
PINNED = ("tiny-bge-m3", "tiny-bge-reranker-v2-m3", "tiny-bert")
TEXTS = ["w1 w2 w3", "", "天空为什么是蓝色的？", "w4 " * 100]
QUERY = "w1 w5"
TOLERANCE = 1e-6  # the server's answer is the engine's own, but for the layout of its steps
SCORE_TOLERANCE = 1e-5  # of a raw score, whose size is about 1
LARGE = "z-large-bert"  # the last by name is not the default
LARGE_LAYERS, LARGE_HIDDEN = 8, 768  # 230 MB of float32
MAX_LEFT_OVER = 0.10


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family, and a folder that cannot be served."""
    root: Path = tmp_path_factory.mktemp("models")
    for name in (*EMBEDDERS, *RERANKERS):
        build(name, root)
    spoil_config(root / "broken", root / "tiny-bert")
    return root


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    named = f"tiny-bge-m3, TINY-BGE-RERANKER-V2-M3,{models / 'tiny-bert'}/"
    environment = {"EMBEDDING_MODELS_DIR": str(models), "EMBEDDING_MODEL": named}
    with start_server(**settings(environment)) as running:
        yield running


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """No model is named here, and two that would be preferred are broken."""
    root: Path = tmp_path_factory.mktemp("large")
    small = build("tiny-bert", root)
    shape = SHAPES["tiny-bert"]
    sizes = {
        "num_hidden_layers": LARGE_LAYERS,
        "hidden_size": LARGE_HIDDEN,
        "num_attention_heads": LARGE_HIDDEN // 64,
        "intermediate_size": 4 * LARGE_HIDDEN,
    }
    with pytest.MonkeyPatch.context() as patch:
        grown = dataclasses.replace(shape, sizes={**shape.sizes, **sizes})
        patch.setitem(random_models.SHAPES, LARGE, grown)
        build(LARGE, root)
    spoil_config(root / "bge-m3", small)
    spoil_weights(root / "a-cut-short", small)
    with start_server(**settings({"EMBEDDING_MODELS_DIR": str(root)})) as running:
        yield running, root


def settings(environment: dict[str, str]) -> dict[str, Any]:
    return {**environment, "EMBEDDING_DEVICE": "cpu"}


def spoil_config(folder: Path, good: Path) -> None:
    shutil.copytree(good, folder)
    (folder / "config.json").write_text('{"model_type": ')


def spoil_weights(folder: Path, good: Path) -> None:
    shutil.copytree(good, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def post(server: Server, path: str, **body: Any) -> Any:
    with server.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def health(server: Server) -> Any:
    with server.client() as client:
        answer = client.get("/health")
    assert answer.status_code == 200, answer.text
    return answer.json()


def own_views(name: str, models: Path, outputs: tuple[str, ...] = ("dense",)) -> list[Outputs]:
    model = load_embedder(name, models / name, choose_device("cpu"), FLOAT32)
    prompt = model.prompt(None, None, None)
    return model.run(model.tokenize(TEXTS, TextLimits(model.max_length), prompt, outputs))


def own_scores(name: str, models: Path) -> NDArray[np.float32]:
    model = load_reranker(name, models / name, choose_device("cpu"), FLOAT32)
    pairs = [(QUERY, text) for text in TEXTS]
    return model.run(model.tokenize_pairs(pairs, PairLimits(model.max_length)))


@pytest.mark.parametrize("name", EMBEDDERS)
def test_an_embedder_of_each_family_answers_what_the_engine_itself_does(
    server: Server, models: Path, name: str
) -> None:
    got = np.array(post(server, "/api/embed", model=name, input=TEXTS)["embeddings"], np.float32)
    wanted = vectors.finish(np.stack([outputs.dense for outputs in own_views(name, models)]))
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE)
    assert len({row.tobytes() for row in got}) == len(TEXTS)


@pytest.mark.parametrize("name", RERANKERS)
@pytest.mark.parametrize("path", ["/v1/rerank", "/score"])
def test_a_reranker_of_each_family_answers_what_the_engine_itself_does(
    server: Server, models: Path, path: str, name: str
) -> None:
    wanted = own_scores(name, models)
    asked = {"model": name, "raw_scores": True}
    if path == "/score":
        answer = post(server, path, text_1=QUERY, text_2=TEXTS, **asked)
        got = [item["score"] for item in answer["data"]]
    else:
        results = post(server, path, query=QUERY, documents=TEXTS, **asked)["results"]
        order = [result["index"] for result in results]
        assert order == np.argsort(-wanted, kind="stable").tolist()
        got = [result["relevance_score"] for result in sorted(results, key=lambda r: r["index"])]
    np.testing.assert_allclose(np.array(got), wanted, atol=SCORE_TOLERANCE, rtol=SCORE_TOLERANCE)
    assert len(set(got)) == len(TEXTS)


def test_all_views_of_one_forward_are_those_of_the_engine_itself(
    server: Server, models: Path
) -> None:
    outputs = ("dense", "sparse", "colbert")
    answer = post(server, "/api/embed", input=TEXTS, outputs=outputs)
    assert answer["model"] == "tiny-bge-m3"
    wanted = own_views("tiny-bge-m3", models, outputs)
    for view, sparse, colbert in zip(wanted, answer["sparse"], answer["colbert"], strict=True):
        assert view.sparse is not None
        assert view.colbert is not None
        assert [int(token_id) for token_id in sparse] == view.sparse.token_ids.tolist()
        weights = np.array(list(sparse.values()))
        np.testing.assert_allclose(weights, view.sparse.weights, atol=TOLERANCE)
        np.testing.assert_allclose(np.array(colbert), view.colbert, atol=TOLERANCE)


def test_named_models_are_there_from_the_start_and_stay(server: Server) -> None:
    there = health(server)
    assert there["model"] == PINNED[0]
    assert {model["model"] for model in there["resident"]} >= set(PINNED)
    for name in PINNED:
        assert f"model {name} loaded in " in server.log().split("ready after")[0]
        post(server, "/api/embed", model=name, keep_alive=0)
    assert {model["model"] for model in health(server)["resident"]} >= set(PINNED)
    assert post(server, "/api/embed", input="a")["model"] == PINNED[0]
    assert post(server, "/rerank", query="a", documents=["b"])["model"] == PINNED[1]


def test_a_broken_folder_is_told_by_its_reason_in_log_health_and_answer(server: Server) -> None:
    (line,) = [line for line in server.log().splitlines() if "model broken cannot" in line]
    assert "config.json" in line
    answer = server.embed({"model": "broken", "input": "a"})
    assert answer.status_code == 503
    assert "broken/config.json" in answer.json()["error"]
    assert list(health(server)["failed"]) == ["broken"]
    post(server, "/api/embed", input="a")


def test_without_a_name_the_first_that_can_be_served_is_the_default(
    large: tuple[Server, Path],
) -> None:
    server, _ = large
    assert health(server)["model"] == "tiny-bert"
    assert post(server, "/api/embed", input="a")["model"] == "tiny-bert"
    log = server.log()
    assert "model a-cut-short cannot be served, trying the next: " in log
    assert "model bge-m3 cannot be served: " in log
    assert "Traceback" not in log


def test_where_every_folder_is_broken_the_server_says_why_and_exits_with_1(
    models: Path, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        spoil_config(tmp_path / name, models / "tiny-bert")
    with start_server(wait=False, **settings({"EMBEDDING_MODELS_DIR": str(tmp_path)})) as server:
        assert server.process.wait(60) == 1
        (line,) = [line for line in server.log().splitlines() if "cannot start" in line]
        assert "first/config.json" in line
        assert "second/config.json" in line
        assert "Traceback" not in server.log()


def test_memory_comes_back_when_a_model_is_unloaded(large: tuple[Server, Path]) -> None:
    server, root = large
    process = psutil.Process(server.process.pid)

    def num_bytes() -> int:
        return int(process.memory_info().rss)

    def load_use_and_unload() -> int:
        """Bytes while the model is in memory."""
        post(server, "/api/embed", model=LARGE, input=TEXTS * 8)
        used = num_bytes()
        post(server, "/api/embed", model=LARGE, keep_alive=0)
        until(lambda: len(health(server)["resident"]) == 1)
        return used

    # What libraries keep for good after their first use is not the model's: it is not counted.
    load_use_and_unload()
    until(lambda: server.log().count("unloaded: ") == 1)
    before = num_bytes()
    weights = (root / LARGE / "model.safetensors").stat().st_size
    assert load_use_and_unload() > before + 0.8 * weights
    until(lambda: num_bytes() <= before * (1 + MAX_LEFT_OVER))


def test_a_folder_that_is_deleted_while_its_model_serves_is_gone_and_no_harm_is_done(
    large: tuple[Server, Path],
) -> None:
    server, root = large
    before = post(server, "/api/embed", input=TEXTS)["embeddings"]
    shutil.copytree(root / "tiny-bert", root / "copy")
    assert post(server, "/api/embed", model="copy", input=TEXTS)["embeddings"] == before
    shutil.rmtree(root / "copy")
    shutil.rmtree(root / "tiny-bert")
    assert server.embed({"model": "copy", "input": "a"}).status_code == 404
    assert post(server, "/api/embed", input=TEXTS)["embeddings"] == before, "it is pinned"
    assert "Traceback" not in server.log()
