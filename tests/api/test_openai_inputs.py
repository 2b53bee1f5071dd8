"""/v1/embeddings beyond texts and vectors: token ids as input, sparse and ColBERT as output."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.api.error_shapes import fault_of
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import (
    COLBERT_DIM,
    END,
    MAX_LENGTH,
    START,
    FakeTokens,
    views_of,
    write_model,
)

PATH = "/v1/embeddings"
TEXTS = ["abc", "", "aab"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models")
    write_model(folder, "heads", has_heads=True)
    write_model(folder, "plain")
    write_model(folder, "ranker", "BertForSequenceClassification")
    return folder


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[FakeServer]:
    with serve_fake(models_dir=root, pinned=["heads"]) as running:
        yield running


@pytest.fixture(scope="module")
def accepting(root: Path) -> Iterator[FakeServer]:
    with serve_fake(models_dir=root, pinned=["heads"], token_ids="accept", max_inputs=5) as running:
        yield running


def items(server: FakeServer, **body: Any) -> list[dict[str, Any]]:
    answer = server.post(PATH, body)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


def refused(server: FakeServer, param: str | None = "input", path: str = PATH, **body: Any) -> str:
    fault = fault_of(server.post(path, body), "openai", 400)
    assert fault.param == param
    return fault.text


IDS: list[Any] = [[97], [97, 98], [[97]], [[97], [98, 99]], [[], [97]], [[]], [0], [-1]]


@pytest.mark.parametrize("ids", IDS, ids=str)
@pytest.mark.parametrize("path", [PATH, "/embeddings"])
def test_token_ids_are_refused_with_the_switch_that_helps(
    server: FakeServer, path: str, ids: Any
) -> None:
    message = refused(server, path=path, input=ids)
    assert "check_embedding_ctx_length=False" in message
    assert "EMBEDDING_TOKEN_IDS=accept" in message


def test_accepted_token_ids_give_their_texts_vector(accepting: FakeServer) -> None:
    lists = [[START, *map(ord, text), END] for text in TEXTS]
    from_ids = items(accepting, input=lists)
    assert from_ids == items(accepting, input=TEXTS)
    assert items(accepting, input=lists[0]) == from_ids[:1], "one list of ids is one input"
    assert accepting.post(PATH, {"input": lists}).json()["usage"]["total_tokens"] == 5 + 2 + 5


def test_accepted_token_ids_are_cut_and_nothing_is_put_around_them(accepting: FakeServer) -> None:
    long = list(range(100, 100 + 2 * MAX_LENGTH))
    for fields, kept in (
        ({}, long[:MAX_LENGTH]),
        ({"truncation_side": "left"}, long[-MAX_LENGTH:]),
        ({"truncate_prompt_tokens": 4}, long[:4]),
    ):
        assert items(accepting, input=long, **fields) == items(accepting, input=kept)


def test_accepted_token_ids_give_all_views(accepting: FakeServer) -> None:
    wanted = ["dense", "sparse", "colbert"]
    ids = [START, *map(ord, "abc"), END]
    assert items(accepting, input=[ids], outputs=wanted) == items(
        accepting, input="abc", outputs=wanted
    )


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[97], [5, 0x110000]], "input 1 has the token id 1114112"),
        ([0x110000], "input 0 has the token id 1114112"),
        ([-1], "input 0 has the token id -1"),
        ([97, 10**18], "input 0 has the token id 1000000000000000000"),
        ([[97], []], "input 1 has no tokens"),
    ],
)
def test_ids_that_the_model_does_not_have_are_refused(
    accepting: FakeServer, ids: Any, words: str
) -> None:
    assert refused(accepting, param=None, input=ids).startswith(words)


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[97], "a"], "input[1] is not a list of token ids"),
        ([[97], 98], "input[1] is not a list of token ids"),
        ([[97], [98, "a"]], "input[1] is not a list of token ids"),
        ([[97], [True]], "input[1] is not a list of token ids"),
        ([[1.5]], "input[0] is not a list of token ids"),
        ([[97], None], "input[1] is not a list of token ids"),
        ([97, "a"], "input[0] is not a list of token ids"),
        (["a", 97], "input[1] is not a string"),
        (["a", [97]], "input[1] is not a string"),
        ([[97]] * 6, "input has 6 lists of token ids, the limit is 5 (max_inputs)"),
    ],
    ids=str,
)
def test_mixed_lists_are_refused_by_index(accepting: FakeServer, ids: Any, words: str) -> None:
    assert words in refused(accepting, input=ids)


@pytest.mark.parametrize("field", ["prompt_name", "input_type", "instruction"])
@pytest.mark.parametrize("model", ["heads", "plain"])
def test_token_ids_take_no_prompt(accepting: FakeServer, field: str, model: str) -> None:
    message = refused(accepting, param=field, input=[97], model=model, **{field: "query"})
    assert message == f"{field}: token ids take no prompt; send text to have one"
    assert items(accepting, input=[97], model=model, **{field: None})


def test_token_ids_for_a_reranker_are_refused(accepting: FakeServer) -> None:
    assert "is a reranker" in refused(accepting, param="model", input=[97], model="ranker")


@pytest.mark.parametrize(
    ("outputs", "fields"),
    [
        (None, {"embedding"}),
        (["dense"], {"embedding"}),
        ("sparse", {"sparse"}),
        (["colbert"], {"colbert"}),
        (["colbert", "dense"], {"embedding", "colbert"}),
        (["dense", "sparse", "colbert", "dense"], {"embedding", "sparse", "colbert"}),
    ],
)
def test_a_view_not_asked_for_is_absent(server: FakeServer, outputs: Any, fields: set[str]) -> None:
    for item in items(server, input=TEXTS, outputs=outputs):
        assert item.keys() == {"object", "index"} | fields


def test_each_item_has_its_own_views(server: FakeServer) -> None:
    every = ["dense", "sparse", "colbert"]
    data = items(server, input=TEXTS, outputs=every)
    for text, item in zip(TEXTS, data, strict=True):
        outputs = views_of(FakeTokens([START, *map(ord, text), END], tuple(every)))
        assert outputs.sparse is not None
        assert outputs.colbert is not None
        weights = {int(key): np.float32(value) for key, value in item["sparse"].items()}
        assert weights == dict(zip(outputs.sparse.token_ids, outputs.sparse.weights, strict=True))
        np.testing.assert_array_equal(np.array(item["colbert"], np.float32), outputs.colbert)
        assert len(item["colbert"]) == len(text) + 1
        assert item["embedding"] == items(server, input=text)[0]["embedding"]


def test_base64_is_for_colbert_rows_too(server: FakeServer) -> None:
    asked = {"input": TEXTS, "outputs": ["dense", "colbert"]}
    numbers = items(server, **asked)
    strings = items(server, **asked, encoding_format="base64")
    for number, string in zip(numbers, strings, strict=True):
        lines = [np.frombuffer(base64.b64decode(row), "<f4") for row in string["colbert"]]
        assert {line.shape for line in lines} == {(COLBERT_DIM,)}
        np.testing.assert_array_equal(np.stack(lines), np.array(number["colbert"], np.float32))


def test_dimensions_leave_colbert_as_it_is(server: FakeServer) -> None:
    whole = items(server, input="abc", outputs=["dense", "colbert"])[0]
    cut = items(server, input="abc", outputs=["dense", "colbert"], dimensions=2)[0]
    assert len(cut["embedding"]) == 2
    assert cut["colbert"] == whole["colbert"]


def test_a_model_without_the_head_says_so(server: FakeServer) -> None:
    for view in ("sparse", "colbert"):
        message = refused(server, "outputs", input="a", model="plain", outputs=["dense", view])
        assert message.startswith(f"model 'plain' has no {view} output; it has: dense")


@pytest.mark.parametrize("outputs", ["warm", ["dense", "warm"], 5, [5], {"dense": True}])
def test_unknown_views_are_refused(server: FakeServer, outputs: Any) -> None:
    fault = fault_of(server.post(PATH, {"input": "a", "outputs": outputs}), "openai", 400)
    assert fault.param is not None
    assert fault.param.startswith("outputs")


def test_jinas_task_chooses_a_side_and_its_other_tasks_are_ignored(server: FakeServer) -> None:
    def vector(**more: Any) -> Any:
        answer = server.post("/v1/embeddings", {"input": "a", **more})
        assert answer.status_code == 200, answer.text
        return answer.json()["data"][0]["embedding"]

    assert vector(task="retrieval.query") == vector(input_type="query")
    assert vector(task="text-matching") == vector()


def test_too_long_a_text_is_refused_where_truncation_is(server: FakeServer) -> None:
    answer = server.post("/v1/embeddings", {"input": "x" * 500, "truncate": False})
    assert answer.status_code == 400
    assert "exceeds the context length" in answer.json()["detail"]
