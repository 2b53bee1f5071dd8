"""Documents in the order of their relevance: /rerank as others' clients call it, and Ollama's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from serving.rows import Cost
from serving.scoring import Scored
from tests.api.error_shapes import dialect_by_path, fault_of
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import raw_score, relevance, write_model

PATHS = ["/rerank", "/v1/rerank", "/v2/rerank"]
EVERY_PATH = [*PATHS, "/api/rerank"]
QUERY = "abc"
DOCUMENTS = ["xyz", "cab", "", "a天", "a天", "bac"]
BEST = [1, 5, 3, 4, 2, 0]  # equal ones in the order that they came
LONGEST = 40


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    """The default is an embedder; `ranker` is the first reranker, `qwen-reranker` takes a task."""
    root: Path = tmp_path_factory.mktemp("models")
    write_model(root, "dense")
    write_model(root, "ranker", "BertForSequenceClassification", max_length=LONGEST)
    write_model(root, "the-qwen-reranker", "Qwen3ForCausalLM", max_length=200)
    with serve_fake(models_dir=root, pinned=["dense"], max_inputs=8) as running:
        yield running


def rerank(server: FakeServer, path: str = "/rerank", **body: Any) -> dict[str, Any]:
    answer = server.post(path, {"query": QUERY, "documents": DOCUMENTS, **body})
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    return read


def indices(answer: dict[str, Any]) -> list[int]:
    return [result["index"] for result in answer["results"]]


def scores(answer: dict[str, Any]) -> list[float]:
    return [result["relevance_score"] for result in answer["results"]]


def error(path: str, answer: httpx.Response, status: int = 400) -> str:
    return fault_of(answer, dialect_by_path(path), status).text


@pytest.mark.parametrize("path", EVERY_PATH)
def test_documents_come_best_first_with_their_relevance(server: FakeServer, path: str) -> None:
    answer = rerank(server, path)
    assert indices(answer) == BEST
    wanted = [relevance(QUERY, DOCUMENTS[index]) for index in BEST]
    np.testing.assert_allclose(scores(answer), wanted, rtol=1e-6)
    assert answer["model"] == "ranker"


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_has_all_that_clients_read(server: FakeServer, path: str) -> None:
    answer = rerank(server, path)
    assert answer.keys() == {"id", "model", "results", "usage", "meta"}
    assert answer["id"] != rerank(server, path)["id"]
    num_tokens = sum(len(QUERY) + len(document) + 3 for document in DOCUMENTS)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    for result in answer["results"]:
        assert result.keys() == {"index", "relevance_score", "document"}
        assert type(result["index"]) is int
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}


def test_ollamas_answer_has_index_and_score_alone(server: FakeServer) -> None:
    answer = rerank(server, "/api/rerank", return_documents=True)
    assert answer.keys() == {"model", "results"}
    assert {tuple(result) for result in answer["results"]} == {("index", "relevance_score")}


@pytest.mark.parametrize("path", EVERY_PATH)
@pytest.mark.parametrize(
    ("top_n", "count"), [(None, 6), (0, 6), (-1, 6), (1, 1), (2, 2), ("2", 2), (6, 6), (10**9, 6)]
)
def test_top_n_keeps_the_best(server: FakeServer, path: str, top_n: Any, count: int) -> None:
    assert indices(rerank(server, path, top_n=top_n)) == BEST[:count]


@pytest.mark.parametrize("wanted", [False, "false", "False", 0])
def test_documents_can_be_left_out(server: FakeServer, wanted: Any) -> None:
    answer = rerank(server, return_documents=wanted)
    assert all(result.keys() == {"index", "relevance_score"} for result in answer["results"])


@pytest.mark.parametrize("wanted", [None, True, "true", "True"])
def test_documents_are_returned_otherwise(server: FakeServer, wanted: Any) -> None:
    answer = rerank(server, return_documents=wanted)
    assert [result["document"]["text"] for result in answer["results"]] == [
        DOCUMENTS[index] for index in BEST
    ]


def test_a_document_may_be_an_object_with_a_text(server: FakeServer) -> None:
    objects = [{"text": text, "title": "other", "n": 5} for text in DOCUMENTS[:3]]
    answer = rerank(server, documents=[*objects, *DOCUMENTS[3:]])
    assert answer["results"] == rerank(server)["results"]


@pytest.mark.parametrize("path", EVERY_PATH)
def test_no_documents_are_no_results(server: FakeServer, path: str) -> None:
    assert rerank(server, path, documents=[])["results"] == []


def test_every_optional_field_may_be_null(server: FakeServer) -> None:
    names = (
        *("model", "top_n", "return_documents", "max_tokens_per_doc", "truncate_prompt_tokens"),
        *("raw_scores", "use_activation", "instruction", "weights"),
    )
    nulls: dict[str, Any] = dict.fromkeys(names)
    assert rerank(server, **nulls)["results"] == rerank(server)["results"]


@pytest.mark.parametrize(
    "fields", [{"raw_scores": True}, {"raw_scores": "true"}, {"use_activation": False}]
)
def test_raw_scores_pass_no_sigmoid(server: FakeServer, fields: dict[str, Any]) -> None:
    answer = rerank(server, **fields)
    assert indices(answer) == BEST
    assert scores(answer) == [raw_score(QUERY, DOCUMENTS[index]) for index in BEST]


def test_scores_need_no_more_digits_than_float32(server: FakeServer) -> None:
    answer = server.post("/rerank", {"query": QUERY, "documents": DOCUMENTS})
    for result in json.loads(answer.text, parse_float=Decimal)["results"]:
        number = result["relevance_score"]
        shortest = Decimal(np.format_float_scientific(np.float32(number), unique=True))
        assert number.normalize() == shortest.normalize()


def test_scores_that_round_to_the_same_relevance_keep_their_order() -> None:
    raw = np.array([30, 40, -800, 40, 900], np.float32)
    best = Scored(raw, True, Cost(0, 0.0, 0.0, 0.0)).best(None, raw=False)
    assert [index for index, _ in best] == [4, 1, 3, 0, 2]
    assert [float(value) for _, value in best] == [1.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("limit", [None, 2, 30])
def test_max_tokens_per_doc_cuts_each_document(server: FakeServer, limit: int | None) -> None:
    documents = ["xx" + "abc" * 3, "b"]
    answer = rerank(server, documents=documents, max_tokens_per_doc=limit, raw_scores=True)
    found = dict(zip(indices(answer), scores(answer), strict=True))
    assert found == {i: raw_score(QUERY, text[:limit]) for i, text in enumerate(documents)}
    assert answer["results"][0]["document"]["text"] in documents


@pytest.mark.parametrize(
    ("limit", "pair"), [(None, LONGEST), (-1, LONGEST), (10, 10), (10**6, LONGEST)]
)
def test_truncate_prompt_tokens_bounds_the_pair(
    server: FakeServer, limit: int | None, pair: int
) -> None:
    answer = rerank(server, documents=["x" * 100], truncate_prompt_tokens=limit, raw_scores=True)
    assert answer["usage"]["prompt_tokens"] == pair
    assert scores(answer) == [raw_score(QUERY, "x" * (pair - len(QUERY) - 3))]


def test_a_reranker_that_takes_a_task_gets_it(server: FakeServer) -> None:
    for path in EVERY_PATH:
        answer = rerank(server, path, model="the-qwen-reranker", instruction="xyz")
        assert indices(answer)[:3] == [0, 1, 5]
        np.testing.assert_allclose(
            scores(answer), sorted((relevance("xyzabc", d) for d in DOCUMENTS), reverse=True), 1e-6
        )


@pytest.mark.parametrize("path", EVERY_PATH)
def test_a_cross_encoder_refuses_a_task(server: FakeServer, path: str) -> None:
    body = {"query": "a", "documents": ["b"], "model": "ranker", "instruction": "find"}
    assert error(path, server.post(path, body)) == "this reranker takes no instruction"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"query": ...}, "query: "),
        ({"documents": ...}, "documents: "),
        ({"query": None}, "query: "),
        ({"query": ["a"]}, "query: "),
        ({"documents": "a"}, "documents: "),
        ({"documents": {"text": "a"}}, "documents: "),
        ({"documents": ["a", 5]}, "documents[1] is not a string"),
        ({"documents": ["a", None]}, "documents[1] is not a string"),
        ({"documents": ["a", ["b"]]}, "documents[1] is not a string"),
        ({"documents": ["a"] * 9}, "documents has 9 texts, the limit is 8 (max_inputs)"),
        ({"documents": ["a", "b", "\ud800"]}, "documents[2] is not valid Unicode"),
        ({"query": "\udc00"}, "query is not valid Unicode"),
        ({"instruction": "\udc00"}, "instruction is not valid Unicode"),
        ({"top_n": 1.5}, "top_n: "),
        ({"top_n": True}, "top_n: "),
        ({"top_n": "many"}, "top_n: "),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "replace").decode(),
)
@pytest.mark.parametrize("path", ["/rerank", "/api/rerank"])
def test_bad_input_is_refused_by_field_or_index(
    server: FakeServer, path: str, body: dict[str, Any], words: str
) -> None:
    fields = {"query": "a", "documents": ["b"], **body}
    sent = json.dumps({name: value for name, value in fields.items() if value is not ...})
    with server.client() as client:
        assert words in error(path, client.post(path, content=sent))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"documents": [{"title": "a"}]}, 'documents: each is a text, or an object with "text"'),
        ({"documents": ["a", {"text": 5}]}, "documents[1] is not a string"),
        ({"documents": ["a", {"text": "\ud800"}]}, "documents[1] is not valid Unicode"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc must be at least 1"),
        ({"max_tokens_per_doc": -1}, "max_tokens_per_doc must be at least 1"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens: must be -1 or at least 1"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens: must be -1 or at least 1"),
        ({"truncate_prompt_tokens": True}, "truncate_prompt_tokens: "),
        ({"return_documents": "maybe"}, "return_documents: "),
        ({"raw_scores": 2}, "raw_scores: "),
        ({"weights": [1, 2]}, "weights: "),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "replace").decode(),
)
def test_bad_fields_of_the_larger_dialect_are_refused_by_name(
    server: FakeServer, fields: dict[str, Any], words: str
) -> None:
    body = json.dumps({"query": "a", "documents": ["b"], **fields})
    with server.client() as client:
        assert words in error("/rerank", client.post("/rerank", content=body))
