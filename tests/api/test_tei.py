"""text-embeddings-inference's routes over fake models: what they accept, answer and refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving import embedding as vectors
from tests.api.error_shapes import fault_of
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import (
    DIM,
    END,
    MAX_LENGTH,
    START,
    FakeTokens,
    raw_score,
    relevance,
    views_of,
    write_model,
)

NAME = "heads"
TEXTS = ["why is the sky blue?", "", "天空", "a", "a"]
ROOM = MAX_LENGTH - 2
EVERY = ("dense", "sparse", "colbert")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models")
    write_model(folder, NAME, has_heads=True, prompts={"query": "q:", "shout": "HEY "})
    write_model(folder, "plain")
    write_model(folder, "ranker", "BertForSequenceClassification", max_length=40)
    return folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[FakeServer]:
    with serve_fake(models_dir=root, pinned=[NAME], max_inputs=100) as running:
        yield running


def views(text: str, kept: slice = slice(ROOM)) -> Any:
    return views_of(FakeTokens([START, *map(ord, text[kept]), END], EVERY))


def dense(texts: list[str], dimensions: int | None = None, norm: bool = True) -> NDArray[Any]:
    return vectors.finish(np.stack([views(text).dense for text in texts]), dimensions, norm)


def ask(server: FakeServer, path: str, **body: Any) -> Any:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def refused(server: FakeServer, path: str, body: Any) -> str:
    """The text of a 422."""
    with server.client() as client:
        answer = client.post(path, content=json.dumps(body))
    return fault_of(answer, "tei", 400).text


def test_embed_answers_rows_alone(server: FakeServer) -> None:
    got = np.array(ask(server, "/embed", inputs=TEXTS), np.float32)
    np.testing.assert_array_equal(got, dense(TEXTS))
    one = np.array(ask(server, "/embed", inputs="one"), np.float32)
    np.testing.assert_array_equal(one, dense(["one"]))


@pytest.mark.parametrize("normalize", [False, "false", True, "true", None])
def test_embed_normalises_unless_told_otherwise(server: FakeServer, normalize: Any) -> None:
    got = np.array(ask(server, "/embed", inputs=TEXTS, normalize=normalize), np.float32)
    is_wanted = str(normalize).lower() != "false"
    np.testing.assert_array_equal(got, dense(TEXTS, norm=is_wanted))


def test_embed_cuts_to_dimensions(server: FakeServer) -> None:
    for normalize in (True, False):
        body = {"inputs": TEXTS, "dimensions": 3, "normalize": normalize}
        got = np.array(ask(server, "/embed", **body), np.float32)
        np.testing.assert_array_equal(got, dense(TEXTS, 3, normalize))
    assert ask(server, "/embed", inputs="a", dimensions=DIM) == ask(server, "/embed", inputs="a")
    for dimensions in (0, DIM + 1):
        message = refused(server, "/embed", {"inputs": "a", "dimensions": dimensions})
        assert message == f"dimensions must be 1 to {DIM}, not {dimensions}"


def test_embed_sparse_answers_ids_and_weights(server: FakeServer) -> None:
    got = ask(server, "/embed_sparse", inputs=TEXTS)
    for text, pairs in zip(TEXTS, got, strict=True):
        sparse = views(text).sparse
        assert [pair.keys() for pair in pairs] == [{"index", "value"}] * len(pairs)
        assert [pair["index"] for pair in pairs] == sparse.token_ids.tolist()
        assert [np.float32(pair["value"]) for pair in pairs] == sparse.weights.tolist()
    assert got[1] == []


def test_embed_all_answers_token_vectors(server: FakeServer) -> None:
    got = ask(server, "/embed_all", inputs=TEXTS)
    for text, rows in zip(TEXTS, got, strict=True):
        np.testing.assert_array_equal(np.array(rows, np.float32), views(text).colbert)
    assert ask(server, "/embed_all", inputs=TEXTS[0]) == got[:1]


EMBEDDING = ["/embed", "/embed_sparse", "/embed_all"]


@pytest.mark.parametrize("path", EMBEDDING)
def test_each_route_truncates_and_takes_prompts(server: FakeServer, path: str) -> None:
    text = "abcdefghijklmnopqrst"
    for fields, same_as in (
        ({}, text[:ROOM]),
        ({"truncate": True, "truncation_direction": "Right"}, text[:ROOM]),
        ({"truncation_direction": "Left"}, text[-ROOM:]),
        ({"truncation_direction": "left"}, text[-ROOM:]),
        ({"prompt_name": "shout"}, "HEY " + text[: ROOM - 4]),
        ({"prompt_name": "", "model": None, "truncate": None}, text[:ROOM]),
    ):
        assert ask(server, path, inputs=text, **fields) == ask(server, path, inputs=same_as)


@pytest.mark.parametrize("path", EMBEDDING)
def test_each_route_refuses_bad_input_by_name(server: FakeServer, path: str) -> None:
    for body, words in (
        ({}, "inputs must not be empty"),
        ({"inputs": None}, "inputs must not be empty"),
        ({"inputs": []}, "inputs must not be empty"),
        ({"inputs": 5}, "inputs must be a string or a list"),
        ({"inputs": ["a", 5]}, "inputs[1] is not a string"),
        ({"inputs": ["a", "\ud800"]}, "inputs[1] is not valid Unicode"),
        ({"inputs": ["a"] * 101}, "inputs has 101 texts, the limit is 100 (max_inputs)"),
        ({"inputs": [97, 98]}, "inputs holds token ids"),
        ({"inputs": ["a", "x" * 99], "truncate": False}, "input 1 has 101 tokens"),
        ({"inputs": "a", "truncate": "maybe"}, "truncate: "),
        ({"inputs": "a", "truncation_direction": "up"}, "truncation_direction: "),
        ({"inputs": "a", "prompt_name": "nope"}, "'nope'"),
        ({"inputs": "a", "model": "ranker"}, "is a reranker"),
    ):
        assert words in refused(server, path, body)


def test_a_model_without_sparse_weights_says_so(server: FakeServer) -> None:
    message = refused(server, "/embed_sparse", {"inputs": "a", "model": "plain"})
    assert message.startswith("model 'plain' has no sparse output; it has: dense")


def test_token_ids_are_inputs_where_the_server_takes_them(root: Path) -> None:
    ids = [START, *map(ord, "abc"), END]
    with serve_fake(models_dir=root, pinned=[NAME], token_ids="accept") as server:
        for path in EMBEDDING:
            assert ask(server, path, inputs=ids) == ask(server, path, inputs="abc")
            assert ask(server, path, inputs=[ids, ids]) == ask(server, path, inputs=["abc"] * 2)


def test_similarity_is_the_cosine_of_each_sentence(server: FakeServer) -> None:
    asked = {"source_sentence": "abc", "sentences": ["abc", "", "xyz", "abc"]}
    got = np.array(ask(server, "/similarity", inputs=asked), np.float32)
    source, *others = dense(["abc", *asked["sentences"]])
    np.testing.assert_allclose(got, np.stack(others) @ source, atol=1e-6)
    assert got[0] == pytest.approx(1, abs=1e-6)
    assert got[0] == got[3]


def test_similarity_takes_parameters(server: FakeServer) -> None:
    long, asked = "abcdefghijklmnopqrst", {"source_sentence": "a", "sentences": ["b" * 30]}

    def ask_with(sentence: str, **parameters: Any) -> Any:
        inputs = {"source_sentence": long, "sentences": [sentence]}
        return ask(server, "/similarity", inputs=inputs, parameters=parameters)

    left = ask_with(long[-ROOM:], truncation_direction="Left")
    assert left == pytest.approx([1], abs=1e-6)
    assert ask_with("x", prompt_name="shout") != ask_with("x")
    assert ask_with("x", truncate=None) == ask_with("x", truncate=True)
    message = refused(server, "/similarity", {"inputs": asked, "parameters": {"truncate": False}})
    assert "input 1 has 32 tokens" in message
    assert ask(server, "/similarity", inputs=asked, parameters=None)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (..., "inputs: "),
        (None, "inputs: "),
        ("a", "inputs: "),
        ({"source_sentence": "a"}, "inputs.sentences: "),
        ({"sentences": ["a"]}, "inputs.source_sentence: "),
        ({"source_sentence": "a", "sentences": []}, "inputs.sentences must not be empty"),
        ({"source_sentence": "a", "sentences": "b"}, "inputs.sentences: "),
        ({"source_sentence": "a", "sentences": ["b", 5]}, "inputs.sentences[1] is not a string"),
        ({"source_sentence": "a", "sentences": ["\ud800"]}, "inputs.sentences[0] is not valid"),
        ({"source_sentence": "\ud800", "sentences": ["b"]}, "inputs.source_sentence"),
        ({"source_sentence": "a", "sentences": ["b"] * 101}, "the limit is 100 (max_inputs)"),
    ],
    ids=ascii,
)
def test_similarity_refuses_bad_input_by_name(server: FakeServer, inputs: Any, words: str) -> None:
    body = {} if inputs is ... else {"inputs": inputs}
    assert words in refused(server, "/similarity", body)


QUERY, DOCUMENTS = "abc", ["xyz", "cab", "", "a天", "a天", "bac"]
BEST = [1, 5, 3, 4, 2, 0]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_rerank_with_texts_answers_ranks_alone(server: FakeServer, path: str) -> None:
    ranks = ask(server, path, query=QUERY, texts=DOCUMENTS)
    assert [rank.keys() for rank in ranks] == [{"index", "score"}] * 6
    assert [rank["index"] for rank in ranks] == BEST
    wanted = [relevance(QUERY, DOCUMENTS[index]) for index in BEST]
    np.testing.assert_allclose([rank["score"] for rank in ranks], wanted, rtol=1e-6)


def test_rerank_with_texts_tells_raw_scores_and_texts(server: FakeServer) -> None:
    body = {"query": QUERY, "texts": DOCUMENTS}
    ranks = ask(server, "/rerank", **body, raw_scores=True, return_text="true")
    assert ranks == [
        {"index": i, "score": raw_score(QUERY, DOCUMENTS[i]), "text": DOCUMENTS[i]} for i in BEST
    ]
    nulls = dict.fromkeys(("raw_scores", "return_text", "truncate", "truncation_direction"))
    assert ask(server, "/rerank", **body, **nulls) == ask(server, "/rerank", **body)


def test_rerank_with_texts_truncates(server: FakeServer) -> None:
    body = {"query": "a", "texts": ["a" + "x" * 50], "raw_scores": True}
    right = ask(server, "/rerank", **body)
    assert right[0]["score"] == raw_score("a", "a" + "x" * 35)
    left = ask(server, "/rerank", **body, truncation_direction="Left")
    assert left[0]["score"] == raw_score("a", "x" * 36)
    assert "input 0 has 55 tokens" in refused(server, "/rerank", {**body, "truncate": False})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"texts": ["a"]}, "query: "),
        ({"query": None, "texts": ["a"]}, "query: "),
        ({"query": "a", "texts": "b"}, "texts: "),
        ({"query": "a", "texts": ["b", {"text": "c"}]}, "texts[1] is not a string"),
        ({"query": "a", "texts": ["b", "\ud800"]}, "texts[1] is not valid Unicode"),
        ({"query": "a", "texts": ["b"] * 101}, "texts has 101 texts, the limit is 100"),
        ({"query": "a", "texts": ["b"], "raw_scores": "maybe"}, "raw_scores: "),
    ],
    ids=ascii,
)
def test_rerank_with_texts_refuses_bad_input(server: FakeServer, body: Any, words: str) -> None:
    assert words in refused(server, "/rerank", body)


def test_an_embedder_ranks_by_cosine(server: FakeServer) -> None:
    ranks = ask(server, "/rerank", query="abc", texts=["x", "abc"], model="plain")
    assert ranks[0]["index"] == 1
    assert ranks[0]["score"] == pytest.approx(1, abs=1e-6)
