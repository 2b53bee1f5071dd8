"""Published and recorded answers: a right model agrees, a wrongly served one does not."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.random_models import build
from engine.fitting import LoadOptions
from engine.loading import load_model
from engine.model import EmbeddingModel, RerankingModel
from engine.outputs import dense_score
from engine.text.tokens import PairLimits, TextLimits
from engine.verify.compare import (
    LIMITS,
    Check,
    WrongKind,
    check_published,
    check_record,
    record_answers,
)
from engine.verify.published import PUBLISHED, Example, Published, find_published
from engine.verify.records import PAIRS, TEXTS, BadRecord, Record, read_record, write_record
from tests.engine.conftest import CPU

EMBEDDERS = ("tiny-bert", "tiny-bge-m3", "tiny-qwen3-embedding")
RERANKERS = ("tiny-bge-reranker", "tiny-qwen3-reranker")
POOLING = "1_Pooling/config.json"


def load(folder: Path) -> EmbeddingModel | RerankingModel:
    return load_model(folder.name, folder, CPU, LoadOptions())


@pytest.fixture(scope="module")
def models(tiny_folder: Callable[[str], Path]) -> dict[str, EmbeddingModel | RerankingModel]:
    return {name: load(tiny_folder(name)) for name in (*EMBEDDERS, *RERANKERS)}


@pytest.fixture(scope="module")
def recorded(models: dict[str, EmbeddingModel | RerankingModel]) -> dict[str, Record]:
    return {name: record_answers(model) for name, model in models.items()}


def mis_pooled(folder: Path, to: Path) -> Path:
    """A copy whose pooling file names another token."""
    copy = to / folder.name
    shutil.copytree(folder, copy)
    switches = json.loads((copy / POOLING).read_text("utf-8"))
    for key in switches:
        if key.startswith("pooling_mode_"):
            switches[key] = key == "pooling_mode_mean_tokens"
    (copy / POOLING).write_text(json.dumps(switches), "utf-8")
    return copy


@pytest.mark.parametrize("name", [*EMBEDDERS, *RERANKERS])
def test_a_model_agrees_with_its_own_record_from_a_file(
    name: str,
    models: dict[str, EmbeddingModel | RerankingModel],
    recorded: dict[str, Record],
    tmp_path: Path,
) -> None:
    path = tmp_path / "answers.json"
    write_record(path, recorded[name])
    checks = check_record(models[name], read_record(path))
    assert len(checks) >= (len(PAIRS) if name in RERANKERS else len(TEXTS))
    assert [check for check in checks if not check.agrees] == []


@pytest.mark.parametrize("name", EMBEDDERS)
def test_a_mis_pooled_model_differs_from_its_record_in_dense_alone(
    name: str, recorded: dict[str, Record], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    checks = check_record(load(mis_pooled(tiny_folder(name), tmp_path)), recorded[name])
    differing = {check.what.partition(",")[0] for check in checks if check.differs}
    agreeing = {check.what.partition(",")[0] for check in checks if check.agrees}
    assert differing == {"dense"}
    assert agreeing == ({"sparse", "colbert"} if name == "tiny-bge-m3" else set())


@pytest.mark.parametrize("name", [*RERANKERS, "tiny-bge-m3"])
def test_other_weights_of_the_same_shape_differ_in_every_output(
    name: str, recorded: dict[str, Record], tmp_path: Path
) -> None:
    checks = check_record(load(build(name, tmp_path, seed=1)), recorded[name])
    outputs = {check.what.partition(",")[0] for check in checks}
    assert {check.what.partition(",")[0] for check in checks if check.differs} == outputs


def test_a_record_comes_back_from_its_file_to_the_last_bit(
    recorded: dict[str, Record], tmp_path: Path
) -> None:
    path = tmp_path / "answers.json"
    write_record(path, recorded["tiny-bge-m3"])
    again = read_record(path)
    assert again.decisions == recorded["tiny-bge-m3"].decisions
    for before, after in zip(recorded["tiny-bge-m3"].texts, again.texts, strict=True):
        assert (before.text, before.input_type) == (after.text, after.input_type)
        np.testing.assert_array_equal(before.outputs.dense, after.outputs.dense)
        assert (before.outputs.sparse is None) == (after.outputs.sparse is None)
        if before.outputs.sparse is not None and after.outputs.sparse is not None:
            np.testing.assert_array_equal(
                before.outputs.sparse.weights, after.outputs.sparse.weights
            )
            np.testing.assert_array_equal(
                before.outputs.sparse.token_ids, after.outputs.sparse.token_ids
            )
        if before.outputs.colbert is not None:
            np.testing.assert_array_equal(before.outputs.colbert, after.outputs.colbert)


def test_the_decisions_say_where_pooling_and_prompt_come_from(
    recorded: dict[str, Record],
) -> None:
    decisions = recorded["tiny-qwen3-embedding"].decisions
    assert (decisions["pooling"], decisions["pooling_source"]) == ("last", POOLING)
    assert decisions["query_prompt"].startswith("Instruct: ")


@pytest.mark.parametrize(
    ("model", "record", "message"),
    [
        ("tiny-bge-reranker", "tiny-bert", "is a reranker"),
        ("tiny-bert", "tiny-bge-reranker", "gives vectors"),
    ],
)
def test_a_record_of_the_other_kind_is_refused(
    model: str,
    record: str,
    message: str,
    models: dict[str, EmbeddingModel | RerankingModel],
    recorded: dict[str, Record],
) -> None:
    with pytest.raises(WrongKind, match=message):
        check_record(models[model], recorded[record])


def test_an_output_or_a_size_that_the_model_lacks_differs(
    models: dict[str, EmbeddingModel | RerankingModel], recorded: dict[str, Record]
) -> None:
    wider = [
        dataclasses.replace(
            text, outputs=dataclasses.replace(text.outputs, dense=np.ones(64, np.float32))
        )
        for text in recorded["tiny-bge-m3"].texts
    ]
    record = dataclasses.replace(recorded["tiny-bge-m3"], texts=tuple(wider))
    checks = check_record(models["tiny-bert"], record)
    assert all(check.differs for check in checks)
    assert {check.got for check in checks} == {"1x32", "no such output"}


def test_the_looser_of_both_types_sets_the_limit(
    models: dict[str, EmbeddingModel | RerankingModel], recorded: dict[str, Record]
) -> None:
    record = recorded["tiny-bert"]
    half = dataclasses.replace(record, decisions={**record.decisions, "dtype": "float16"})
    (limit,) = {check.limit for check in check_record(models["tiny-bert"], half)}
    assert limit == LIMITS["float16"].cosine > LIMITS["float32"].cosine


def test_nan_never_agrees_and_is_never_recorded(
    models: dict[str, EmbeddingModel | RerankingModel],
    recorded: dict[str, Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Check("x", difference=math.nan, limit=1.0).differs
    model = models["tiny-bge-reranker"]
    monkeypatch.setattr(model, "run", lambda batch: np.full(len(batch), np.nan, np.float32))
    assert all(check.differs for check in check_record(model, recorded["tiny-bge-reranker"]))
    with pytest.raises(ValueError, match="not finite"):
        record_answers(model)


@pytest.mark.parametrize(
    ("folder", "model"),
    [
        ("bge-m3", "BAAI/bge-m3"),
        ("BAAI__bge-m3", "BAAI/bge-m3"),
        ("BGE-M3-fp16", "BAAI/bge-m3"),
        ("bge-reranker-v2-m3", "BAAI/bge-reranker-v2-m3"),
        ("BAAI_bge-reranker-large", "BAAI/bge-reranker-large"),
        ("Qwen3-Embedding-0___6B", "Qwen/Qwen3-Embedding-0.6B"),
        ("qwen3-embedding-4b", "Qwen/Qwen3-Embedding-4B"),
        ("Qwen--Qwen3-Embedding-8B", "Qwen/Qwen3-Embedding-8B"),
        ("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
    ],
)
def test_published_answers_are_found_by_the_folders_name(folder: str, model: str) -> None:
    published = find_published(folder)
    assert published is not None
    assert published.source == f"https://huggingface.co/{model}"


@pytest.mark.parametrize(
    "folder", ["bge-small-en-v1.5", "bge-reranker-base", "bge-m30", "Qwen3-Reranker-0.6B", "x", ""]
)
def test_nothing_is_published_under_other_names(folder: str) -> None:
    assert find_published(folder) is None


def test_every_published_table_has_a_number_for_each_pair() -> None:
    for published in PUBLISHED:
        for example in published.examples:
            assert len(example.expected) == len(example.queries)
            assert {len(row) for row in example.expected} == {len(example.documents)}
        assert str(published.examples[0].tolerance) in published.why


def test_published_pairs_run_query_by_query_through_the_models_own_prompt(
    models: dict[str, EmbeddingModel | RerankingModel],
) -> None:
    """Expected values from the framing as the authors write it, one text at a time."""
    model = models["tiny-qwen3-embedding"]
    assert isinstance(model, EmbeddingModel)
    published = find_published("Qwen3-Embedding-0.6B")
    assert published is not None
    (example,) = published.examples
    task = "Given a web search query, retrieve relevant passages that answer the query"
    framed = [f"Instruct: {task}\nQuery:{query}" for query in example.queries]

    def vector(text: str) -> Any:
        return model.run(model.tokenize([text], TextLimits(model.max_length)))[0].dense

    rows = tuple(
        tuple(dense_score(vector(query), vector(document)) for document in example.documents)
        for query in framed
    )
    mine = dataclasses.replace(example, expected=rows, tolerance=1e-5)
    checks = check_published(model, Published("me/mine", "", (mine,)))
    assert [check.what for check in checks] == [
        "dense q1p1",
        "dense q1p2",
        "dense q2p1",
        "dense q2p2",
    ]
    assert all(check.agrees for check in checks)


def test_published_scores_of_a_reranker_are_raw(
    models: dict[str, EmbeddingModel | RerankingModel],
) -> None:
    model = models["tiny-bge-reranker"]
    assert isinstance(model, RerankingModel)
    pairs = [("what?", "this"), ("what?", "that, which is longer")]
    low, high = model.run(model.tokenize_pairs(pairs, PairLimits(model.max_length))).tolist()
    documents = tuple(document for _, document in pairs)
    example = Example("score", ("what?",), documents, ((low, high),), 1e-5)
    checks = check_published(model, Published("me/mine", "", (example,)))
    assert [check.agrees for check in checks] == [True, True]


def test_bge_m3s_three_outputs_are_compared_and_random_weights_differ(
    models: dict[str, EmbeddingModel | RerankingModel],
) -> None:
    published = find_published("bge-m3")
    assert published is not None
    checks = check_published(models["tiny-bge-m3"], published)
    outputs = [check.what.partition(" ")[0] for check in checks]
    assert outputs == ["dense"] * 4 + ["sparse"] * 4 + ["colbert"] * 4
    for output in set(outputs):
        assert any(check.differs for check in checks if check.what.startswith(output))


def test_published_outputs_that_the_folder_lacks_are_skipped(
    models: dict[str, EmbeddingModel | RerankingModel],
) -> None:
    published = find_published("bge-m3")
    assert published is not None
    checks = check_published(models["tiny-bert"], published)
    assert [check.what for check in checks if check.skipped] == ["sparse", "colbert"]
    assert not any(check.differs or check.agrees for check in checks if check.skipped)


def test_a_model_that_is_not_what_its_name_says_is_refused(
    models: dict[str, EmbeddingModel | RerankingModel],
) -> None:
    for name, published_name in (
        ("tiny-bert", "bge-reranker-large"),
        ("tiny-bge-reranker", "bge-m3"),
    ):
        published = find_published(published_name)
        assert published is not None
        with pytest.raises(WrongKind, match="its name says"):
            check_published(models[name], published)


def _text(**changes: Any) -> dict[str, Any]:
    return {"text": "a", "input_type": None, "dense": [1.0, 2.0], **changes}


def _content(**changes: Any) -> dict[str, Any]:
    return {"version": 1, "model": "m", "decisions": {}, "texts": [_text()], **changes}


def _texts(**changes: Any) -> dict[str, Any]:
    return _content(texts=[_text(), _text(**changes)])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([], "not a JSON object"),
        (_content(version=2), "version: must be 1, is 2"),
        (_content(decisions=[]), "decisions: must be an object"),
        (_content(model=3), "model: must be a text"),
        (_content(texts={}), "texts: must be a list"),
        (_content(texts=[]), "texts, pairs: at least one"),
        (_content(texts=["a"]), "texts[0]: must be an object"),
        (_content(texts=[{"text": "a"}]), "texts[0].dense: is missing"),
        (_texts(text=None), "texts[1].text: must be a text"),
        (_texts(input_type="clustering"), "texts[1].input_type: must be null, query or document"),
        (_texts(dense="1 2"), "texts[1].dense: must be a list"),
        (_texts(dense=[1.0, "b"]), "texts[1].dense: must hold numbers"),
        (_texts(dense=[[1.0]]), "texts[1].dense: must be a list of numbers"),
        (_texts(dense=[math.nan]), "texts[1].dense: holds NaN or infinity"),
        (_texts(sparse={"token_ids": [1]}), "texts[1].sparse.weights: is missing"),
        (_texts(sparse={"token_ids": [1], "weights": []}), "texts[1].sparse: 1 token_ids and 0"),
        (_texts(colbert=[1.0]), "texts[1].colbert: must be a list of rows"),
        (_texts(colbert=[[1.0], [1.0, 2.0]]), "texts[1].colbert: must hold numbers, in rows"),
        (_content(pairs=[{"query": "a", "document": "b"}]), "pairs[0].score: is missing"),
        (
            _content(pairs=[{"query": "a", "document": "b", "score": True}]),
            "pairs[0].score: must be a number",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_key(
    content: Any, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(BadRecord) as refusal:
        read_record(path)
    assert str(refusal.value).startswith(f"{path}: {fault}")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_json_is_refused_with_its_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    with pytest.raises(BadRecord, match=r"answers\.json: not JSON"):
        read_record(path)


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRecord, match="nowhere: No such file"):
        read_record(tmp_path / "nowhere")
    with pytest.raises(BadRecord, match="Is a directory"):
        write_record(tmp_path, Record("m", {}))
