"""What else one forward gives over /api/embed, and which prompt goes before a text."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from api.http import body as writing
from serving import embedding as vectors
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import (
    COLBERT_DIM,
    DIM,
    END,
    PROMPTS,
    START,
    FakeTokens,
    views_of,
    write_model,
)

TEXTS = ["Aa天b", "", "why not"]
ALL = ("dense", "sparse", "colbert")
MAX_COLBERT_TOKENS = 24
LONGEST = 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    """`m3` has all outputs and prompts, `plain` has neither, `qwen` frames instructions."""
    root: Path = tmp_path_factory.mktemp("models")
    write_model(root, "m3", has_heads=True, prompts=PROMPTS, max_length=LONGEST)
    write_model(root, "plain")
    write_model(root, "qwen", "Qwen3Model", max_length=200)
    write_model(root, "ranker", "BertForSequenceClassification")
    with serve_fake(
        models_dir=root, pinned=["m3"], max_colbert_tokens=MAX_COLBERT_TOKENS
    ) as running:
        yield running


def embed(server: FakeServer, **body: Any) -> dict[str, Any]:
    answer = server.embed({"input": TEXTS, **body})
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    return read


def error(answer: httpx.Response) -> str:
    assert answer.status_code == 400, answer.text
    assert answer.json().keys() == {"error"}
    text: str = answer.json()["error"]
    return text


def views(text: str) -> Any:
    return views_of(FakeTokens([START, *map(ord, text), END], ALL))


def dense(*texts: str) -> list[list[float]]:
    """As JSON tells them."""
    rows = vectors.finish(np.stack([views(text).dense for text in texts]))
    read: list[list[float]] = json.loads(writing.dumps({"rows": rows}))["rows"]
    return read


@pytest.mark.parametrize("outputs", [None, [], ["dense"], ["dense", "dense"]])
def test_dense_alone_is_the_default(server: FakeServer, outputs: Any) -> None:
    answer = embed(server, outputs=outputs)
    assert answer["embeddings"] == dense(*TEXTS)
    assert not answer.keys() & {"sparse", "colbert"}


@pytest.mark.parametrize(
    "outputs", [["sparse"], ["colbert"], ["dense", "colbert"], ["colbert", "sparse", "dense"]]
)
def test_a_view_that_was_not_asked_for_is_absent(server: FakeServer, outputs: list[str]) -> None:
    fields = {"dense": "embeddings", "sparse": "sparse", "colbert": "colbert"}
    for texts in (TEXTS, []):
        answer = embed(server, outputs=outputs, input=texts)
        given = {name for name in fields.values() if name in answer}
        assert given == {fields[name] for name in outputs}
        assert all(len(answer[name]) == len(texts) for name in given)


def test_sparse_is_a_weight_a_token_id(server: FakeServer) -> None:
    answer = embed(server, outputs=["sparse"])
    for weights, text in zip(answer["sparse"], TEXTS, strict=True):
        wanted = views(text).sparse
        assert list(weights) == [str(token_id) for token_id in wanted.token_ids]
        told = np.array(list(weights.values()), np.float32)
        np.testing.assert_array_equal(told, wanted.weights)
    assert answer["sparse"][1] == {}


def test_sparse_by_text_keeps_the_largest_weight_of_equal_texts(server: FakeServer) -> None:
    ids, texts = (
        embed(server, outputs=["sparse"], sparse_keys=keys, input=["Aa天b"])["sparse"][0]
        for keys in ("id", "text")
    )
    assert texts == {
        "a": max(ids[str(ord("A"))], ids[str(ord("a"))]),
        "b": ids[str(ord("b"))],
        "天": ids[str(ord("天"))],
    }


def test_colbert_is_a_unit_vector_a_token_but_the_first(server: FakeServer) -> None:
    answer = embed(server, outputs=["colbert"])
    for rows, text in zip(answer["colbert"], TEXTS, strict=True):
        np.testing.assert_array_equal(np.array(rows, np.float32), views(text).colbert)
        assert len(rows) == len(text) + 1


def test_base64_is_a_string_a_colbert_row_and_leaves_sparse_as_it_is(server: FakeServer) -> None:
    numbers = embed(server, outputs=ALL)
    strings = embed(server, outputs=ALL, encoding_format="base64")
    for rows, wanted in zip(strings["colbert"], numbers["colbert"], strict=True):
        read = [np.frombuffer(base64.b64decode(row, validate=True), "<f4") for row in rows]
        np.testing.assert_array_equal(np.stack(read), np.array(wanted, np.float32))
        assert {len(row) for row in read} == {COLBERT_DIM}
    assert all(len(base64.b64decode(row)) == 4 * DIM for row in strings["embeddings"])
    assert strings["sparse"] == numbers["sparse"]


def test_numbers_of_every_view_need_no_more_digits_than_float32(server: FakeServer) -> None:
    body = {"input": TEXTS, "outputs": ALL}
    answer = json.loads(server.embed(body).text, parse_float=Decimal)
    told = [number for weights in answer["sparse"] for number in weights.values()]
    told += [number for rows in answer["colbert"] for row in rows for number in row]
    told += [number for row in answer["embeddings"] for number in row]
    for number in told:
        shortest = Decimal(np.format_float_scientific(np.float32(number), unique=True))
        assert number.normalize() == shortest.normalize()


def test_dimensions_cut_the_dense_vectors_alone(server: FakeServer) -> None:
    answer = embed(server, outputs=ALL, dimensions=2)
    assert {len(row) for row in answer["embeddings"]} == {2}
    assert {len(row) for rows in answer["colbert"] for row in rows} == {COLBERT_DIM}


@pytest.mark.parametrize(
    ("model", "outputs", "text"),
    [
        ("plain", ["sparse"], "model 'plain' has no sparse output; it has: dense"),
        ("plain", ["dense", "colbert"], "model 'plain' has no colbert output; it has: dense"),
        ("ranker", None, "model 'ranker' is a reranker: it scores pairs and has no vectors"),
        ("ranker", ["dense"], "model 'ranker' is a reranker: it scores pairs and has no vectors"),
    ],
)
def test_a_view_that_a_model_lacks_is_refused_by_what_it_has(
    server: FakeServer, model: str, outputs: Any, text: str
) -> None:
    assert error(server.embed({"model": model, "input": "a", "outputs": outputs})) == text


@pytest.mark.parametrize("outputs", ["Dense", ["Dense"], ["multi"], [1], {}, True, [None]])
def test_unknown_outputs_are_refused_by_name(server: FakeServer, outputs: Any) -> None:
    assert "outputs" in error(server.embed({"input": "a", "outputs": outputs}))


def test_one_output_may_stand_without_a_list(server: FakeServer) -> None:
    assert embed(server, outputs="sparse", input="a").keys() >= {"sparse"}


def test_unknown_sparse_keys_are_refused_by_name(server: FakeServer) -> None:
    assert "sparse_keys" in error(server.embed({"input": "a", "sparse_keys": "token"}))


def test_colbert_tokens_of_one_request_have_a_limit(server: FakeServer) -> None:
    fits = ["x" * (MAX_COLBERT_TOKENS // 2 - 2)] * 2
    embed(server, outputs=["colbert"], input=fits)
    refused = server.embed({"input": [*fits, ""], "outputs": ["dense", "colbert"]})
    assert error(refused) == (
        f"the request has {MAX_COLBERT_TOKENS + 2} tokens or more, "
        f"the limit is {MAX_COLBERT_TOKENS} (max_colbert_tokens)"
    )
    embed(server, outputs=["dense", "sparse"], input=[*fits, "", *fits])


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, ""),
        ({"prompt_name": "shout"}, "HEY "),
        ({"prompt_name": "query"}, "q:"),
        ({"input_type": "query"}, "q:"),
        ({"input_type": "search_query"}, "q:"),
        ({"input_type": "SEARCH_QUERY"}, "q:"),
        ({"input_type": "document"}, "p:"),
        ({"input_type": "search_document"}, "p:"),
        ({"input_type": "passage"}, "p:"),
        ({"input_type": "clustering"}, ""),
        ({"instruction": "so: "}, "so: "),
        ({"instruction": "so: ", "input_type": "query"}, "so: "),
        ({"instruction": "so: ", "input_type": "document"}, ""),
        ({"prompt_name": "shout", "input_type": "query"}, "HEY "),
        ({"prompt_name": None, "input_type": None, "instruction": None}, ""),
        ({"instruction": ""}, ""),
    ],
)
def test_the_prompt_goes_before_each_text(
    server: FakeServer, fields: dict[str, Any], prompt: str
) -> None:
    answer = embed(server, input=["one", "two"], **fields)
    assert answer["embeddings"] == dense(f"{prompt}one", f"{prompt}two")
    assert answer["prompt_eval_count"] == 2 * (len(prompt) + 3 + 2)


def test_an_instruction_goes_into_the_frame_of_the_model(server: FakeServer) -> None:
    answer = embed(server, model="qwen", input=["one"], instruction="Find it")
    assert answer["embeddings"] == dense("Instruct: Find it\nQuery:one")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"prompt_name": "whisper"},
            "prompt_name 'whisper' is unknown; this model has: passage, query, shout",
        ),
        ({"model": "plain", "prompt_name": "query"}, "this model has: none"),
        ({"input_type": "poem"}, "input_type 'poem' is unknown; known are query, search_query"),
        ({"input_type": "poem", "instruction": "a"}, "input_type 'poem' is unknown"),
        ({"prompt_name": 5}, "prompt_name"),
        ({"input_type": ["query"]}, "input_type"),
        ({"instruction": {}}, "instruction"),
    ],
)
def test_an_unknown_prompt_is_refused_by_what_there_is(
    server: FakeServer, fields: dict[str, Any], text: str
) -> None:
    assert text in error(server.embed({"input": "a", **fields}))


@pytest.mark.parametrize("field", ["prompt_name", "input_type", "instruction"])
def test_a_lone_surrogate_is_refused_by_its_field(server: FakeServer, field: str) -> None:
    body = json.dumps({"input": "a", field: "\ud800"})
    with server.client() as client:
        text = error(client.post("/api/embed", content=body))
    assert text == f"{field} is not valid Unicode: it has a lone surrogate"


def test_prompts_of_the_setting_go_beside_and_over_the_models_own(tmp_path: Path) -> None:
    write_model(tmp_path, "m3", prompts=PROMPTS)
    prompts = {"query": "ask ", "new": "new "}
    with serve_fake(models_dir=tmp_path, pinned=["m3"], prompts=prompts) as server:
        for name, prompt in {"shout": "HEY ", **prompts}.items():
            answer = embed(server, input=["one"], prompt_name=name)
            assert answer["embeddings"] == dense(f"{prompt}one")
