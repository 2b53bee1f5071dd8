"""Scores of pairs in their order, and what an embedder answers where a reranker is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from engine.outputs import Outputs, Weights, hybrid_score
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import (
    END,
    PROMPTS,
    START,
    FakeTokens,
    raw_score,
    relevance,
    views_of,
    write_model,
)

PATHS = ["/score", "/v1/score"]
SIDES = [
    ("text_1", "text_2"),
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
]
COUNTS = "Input lengths must be either 1:1, 1:N or N:N"
ALL = ("dense", "sparse", "colbert")
LEFTS, RIGHTS = ["abc", "xyz", "abc"], ["cab", "yy天", ""]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    root: Path = tmp_path_factory.mktemp("models")
    write_model(root, "dense")
    write_model(root, "m3", has_heads=True, prompts=PROMPTS)
    write_model(root, "ranker", "BertForSequenceClassification", max_length=40)
    with serve_fake(models_dir=root, pinned=["ranker"], max_inputs=8) as running:
        yield running


def score(server: FakeServer, path: str = "/score", **body: Any) -> list[float]:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return [item["score"] for item in data]


def error(answer: httpx.Response) -> str:
    assert answer.status_code == 400, answer.text
    text: str = answer.json()["detail"]
    assert answer.json()["error"]["message"] == text
    return text


def views(text: str) -> Outputs:
    return views_of(FakeTokens([START, *map(ord, text), END], ALL))


def similarity(left: str, right: str, weights: Weights | None = None) -> float:
    return hybrid_score(views(left), views(right), weights or Weights())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("left", "right"), SIDES)
@pytest.mark.parametrize(
    ("lefts", "rights", "pairs"),
    [
        ("abc", "cab", [("abc", "cab")]),
        (["abc"], "cab", [("abc", "cab")]),
        ("abc", ["cab"], [("abc", "cab")]),
        ("", [""], [("", "")]),
        ("abc", RIGHTS, [("abc", right) for right in RIGHTS]),
        (["abc"], RIGHTS, [("abc", right) for right in RIGHTS]),
        (LEFTS, RIGHTS, list(zip(LEFTS, RIGHTS, strict=True))),
    ],
)
def test_pairs_are_one_to_one_one_to_many_or_many_to_many(
    server: FakeServer,
    path: str,
    left: str,
    right: str,
    lefts: Any,
    rights: Any,
    pairs: list[tuple[str, str]],
) -> None:
    got = score(server, path, **{left: lefts, right: rights})
    np.testing.assert_allclose(got, [relevance(*pair) for pair in pairs], rtol=1e-6)


@pytest.mark.parametrize(
    ("lefts", "rights"),
    [
        (["a", "b"], "c"),
        (["a", "b"], ["c"]),
        (["a", "b"], ["c", "d", "e"]),
        (["a", "b", "c"], ["d", "e"]),
        ([], []),
        ([], "a"),
        ("a", []),
    ],
)
def test_any_other_lengths_are_refused(server: FakeServer, lefts: Any, rights: Any) -> None:
    for left, right in SIDES:
        answer = server.post("/score", {left: lefts, right: rights})
        assert error(answer) == COUNTS


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_has_all_that_clients_read(server: FakeServer, path: str) -> None:
    body = {"text_1": "abc", "text_2": RIGHTS, "encoding_format": "float", "model": "ranker:latest"}
    answer = server.post(path, body).json()
    assert answer.keys() == {"id", "object", "created", "model", "data", "usage"}
    assert (answer["object"], answer["model"]) == ("list", "ranker:latest")
    assert type(answer["created"]) is int
    num_tokens = sum(3 + len(right) + 3 for right in RIGHTS)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    for item in answer["data"]:
        assert item.keys() == {"index", "object", "score"}
        assert item["object"] == "score"


@pytest.mark.parametrize(
    "fields", [{"raw_scores": True}, {"use_activation": False}, {"use_activation": "false"}]
)
def test_raw_scores_pass_no_sigmoid(server: FakeServer, fields: dict[str, Any]) -> None:
    wanted = [raw_score("abc", right) for right in RIGHTS]
    assert score(server, text_1="abc", text_2=RIGHTS, **fields) == wanted


def test_a_text_may_be_an_object(server: FakeServer) -> None:
    objects = [{"text": right} for right in RIGHTS]
    plain = score(server, queries="abc", documents=RIGHTS)
    assert score(server, queries={"text": "abc"}, documents=objects) == plain


def test_truncate_prompt_tokens_bounds_the_pair(server: FakeServer) -> None:
    body = {"text_1": "abc", "text_2": "x" * 100}
    for limit, pair in ((None, 40), (-1, 40), (12, 12), (1000, 40)):
        answer = server.post("/score", {**body, "truncate_prompt_tokens": limit})
        assert answer.json()["usage"]["prompt_tokens"] == pair


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "give exactly one of text_1/text_2, queries/documents, queries/items, data_1/data_2"),
        ({"text_1": "a"}, "give exactly one of"),
        ({"text_2": "a"}, "give exactly one of"),
        ({"text_1": "a", "documents": "b"}, "give exactly one of"),
        ({"queries": "a", "documents": "b", "items": "c"}, "give exactly one of"),
        ({"text_1": "a", "text_2": "b", "data_1": "c", "data_2": "d"}, "give exactly one of"),
        ({"text_1": 5, "text_2": "a"}, "text_1[0] is not a string"),
        ({"text_1": "a", "text_2": ["a", None]}, "text_2[1] is not a string"),
        ({"queries": "a", "items": ["a", {"text": 5}]}, "items[1] is not a string"),
        ({"text_1": "a", "text_2": ["b", "\ud800"]}, "text_2[1] is not valid Unicode"),
        ({"text_1": "\ud800", "text_2": "b"}, "text_1 is not valid Unicode"),
        ({"text_1": "a", "text_2": ["b"] * 9}, "text_2 has 9 texts, the limit is 8 (max_inputs)"),
        ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 0}, "-1 or at least 1"),
        ({"text_1": "a", "text_2": "b", "instruction": "c"}, "this reranker takes no instruction"),
        (
            {"text_1": "a", "text_2": "b", "weights": {"dense": 1}},
            "weights: model 'ranker' is a reranker and has one score only",
        ),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode(),
)
def test_bad_input_is_refused_by_name(server: FakeServer, body: dict[str, Any], words: str) -> None:
    with server.client() as client:
        assert words in error(client.post("/score", content=json.dumps(body)))


def test_an_embedder_answers_by_cosine_and_sigmoid_is_no_matter(server: FakeServer) -> None:
    wanted = [similarity(*pair) for pair in zip(LEFTS, RIGHTS, strict=True)]
    for raw in (False, True):
        got = score(server, model="dense", text_1=LEFTS, text_2=RIGHTS, raw_scores=raw)
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert min(wanted) < 0


def test_an_embedder_ranks_by_cosine_too(server: FakeServer) -> None:
    for path in ("/rerank", "/api/rerank"):
        answer = server.post(path, {"model": "dense", "query": "abc", "documents": RIGHTS}).json()
        found = [(result["relevance_score"], result["index"]) for result in answer["results"]]
        wanted = sorted(((similarity("abc", d), i) for i, d in enumerate(RIGHTS)), reverse=True)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_queries_and_documents_take_their_own_prompts_and_texts_none(server: FakeServer) -> None:
    wanted = [similarity("q:abc", f"p:{right}") for right in RIGHTS]
    got = score(server, model="m3", queries="abc", documents=RIGHTS)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    texts = score(server, model="m3", text_1="abc", text_2=RIGHTS)
    np.testing.assert_allclose(texts, [similarity("abc", right) for right in RIGHTS], atol=1e-6)
    body = {"model": "m3", "query": "abc", "documents": RIGHTS, "instruction": "so "}
    results = server.post("/rerank", body).json()["results"]
    found = {result["index"]: result["relevance_score"] for result in results}
    told = [similarity("so abc", f"p:{right}") for right in RIGHTS]
    np.testing.assert_allclose([found[i] for i in range(len(RIGHTS))], told, atol=1e-6)


@pytest.mark.parametrize(
    "weights",
    [
        {"dense": 1},
        {"sparse": 1},
        {"colbert": 2},
        {"dense": 0.4, "sparse": 0.2, "colbert": 0.4},
        {"dense": 0, "sparse": 1, "colbert": 3},
    ],
    ids=str,
)
def test_a_hybrid_score_is_the_weighted_mean_of_the_views(
    server: FakeServer, weights: dict[str, float]
) -> None:
    wanted = [similarity("abc", right, Weights(**{"dense": 0.0} | weights)) for right in RIGHTS]
    got = score(server, model="m3", text_1="abc", text_2=RIGHTS, weights=weights)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"dense": 0}, "weights: at least one of dense, sparse, colbert must be above 0"),
        ({}, "weights: at least one"),
        ({"dense": -1, "sparse": 1}, "weights.dense: "),
        ({"sparse": 1e7}, "weights.sparse: "),
        ({"colbert": "much"}, "weights.colbert: "),
        ({"lexical": 1}, "weights.lexical: "),
        ([0.4, 0.2, 0.4], "weights: "),
    ],
    ids=str,
)
def test_bad_weights_are_refused_by_name(server: FakeServer, weights: Any, words: str) -> None:
    body = {"model": "m3", "text_1": "a", "text_2": "b", "weights": weights}
    assert words in error(server.post("/score", body))


def test_weights_of_a_view_that_a_model_lacks_are_refused(server: FakeServer) -> None:
    body = {"model": "dense", "text_1": "a", "text_2": "b", "weights": {"dense": 1, "sparse": 1}}
    text = "model 'dense' has no sparse output; it has: dense"
    assert error(server.post("/score", body)) == text


def test_each_text_is_embedded_once(server: FakeServer) -> None:
    server.engine.steps.clear()
    texts = ["a", "b", "a", "b"]
    first, second, third, fourth = score(server, model="dense", text_1=texts, text_2=["c"] * 4)
    assert (first, second) == (third, fourth)
    assert server.engine.steps == [("dense", 3)]
