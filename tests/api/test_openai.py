"""POST /v1/embeddings over fake models: what OpenAI's dialect accepts, answers and refuses."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from serving import embedding as vectors
from tests.api.error_shapes import fault_of
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import DIM, END, MAX_LENGTH, START, FakeTokens, views_of, write_model

NAME = "dense"
PATHS = ["/v1/embeddings", "/embeddings"]
TEXTS = ["why is the sky blue?", "", "天空", "a", "a"]  # the first is longer than the limit
ROOM = MAX_LENGTH - 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    """The default is dense alone, `heads` has three outputs."""
    root: Path = tmp_path_factory.mktemp("models")
    write_model(root, NAME, prompts={"query": "q:", "passage": "p:", "shout": "HEY "})
    write_model(root, "heads", has_heads=True)
    write_model(root, "ranker", "BertForSequenceClassification")
    with serve_fake(models_dir=root, pinned=[NAME]) as running:
        yield running


def expected(texts: list[str], dimensions: int | None = None, limit: int = ROOM) -> NDArray[Any]:
    tokens = [FakeTokens([START, *map(ord, text[:limit]), END]) for text in texts]
    return of_tokens(tokens, dimensions)


def of_tokens(tokens: list[FakeTokens], dimensions: int | None = None) -> NDArray[np.float32]:
    return vectors.finish(np.stack([views_of(t).dense for t in tokens]), dimensions)


def embed(server: FakeServer, path: str = PATHS[0], **body: Any) -> dict[str, Any]:
    answer = server.post(path, {"input": TEXTS, **body})
    assert answer.status_code == 200, answer.text
    read: dict[str, Any] = answer.json()
    return read


def rows(answer: dict[str, Any]) -> NDArray[np.float32]:
    assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
    return np.array([item["embedding"] for item in answer["data"]], np.float32)


def refused(server: FakeServer, body: Any, param: str | None) -> str:
    """The text of a 400."""
    with server.client() as client:
        answer = client.post(PATHS[0], content=json.dumps(body))
    fault = fault_of(answer, "openai", 400)
    assert fault.param == param
    return fault.text


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_has_all_that_clients_read(server: FakeServer, path: str) -> None:
    answer = embed(server, path)
    assert answer.keys() == {"object", "data", "model", "usage", "id", "created"}
    assert (answer["object"], answer["model"]) == ("list", NAME)
    for item in answer["data"]:
        assert item.keys() == {"object", "index", "embedding"}
        assert item["object"] == "embedding"
        assert type(item["index"]) is int
    np.testing.assert_array_equal(rows(answer), expected(TEXTS))
    np.testing.assert_allclose(np.linalg.norm(rows(answer), axis=1), 1, atol=1e-6)
    num_tokens = sum(min(len(text), ROOM) + 2 for text in TEXTS)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    assert answer["id"] != embed(server, path)["id"]
    assert type(answer["created"]) is int
    assert abs(answer["created"] - time.time()) < 600


@pytest.mark.parametrize("path", PATHS)
def test_a_string_gives_a_list_of_one(server: FakeServer, path: str) -> None:
    np.testing.assert_array_equal(rows(embed(server, path, input="one")), expected(["one"]))


@pytest.mark.parametrize("given", ["", [""], [" "]])
def test_an_empty_text_is_a_real_text(server: FakeServer, given: Any) -> None:
    text = given if isinstance(given, str) else given[0]
    np.testing.assert_array_equal(rows(embed(server, input=given)), expected([text]))


def test_base64_equals_the_numbers_bit_for_bit(server: FakeServer) -> None:
    numbers = rows(embed(server, encoding_format="float"))
    items = embed(server, encoding_format="base64")["data"]
    strings = [base64.b64decode(item["embedding"], validate=True) for item in items]
    assert strings == [row.astype("<f4").tobytes() for row in numbers]


def test_numbers_carry_the_shortest_digits_of_float32(server: FakeServer) -> None:
    text = server.post(PATHS[0], {"input": TEXTS}).text
    wanted = expected(TEXTS)
    for item, row in zip(json.loads(text, parse_float=Decimal)["data"], wanted, strict=True):
        shortest = [Decimal(np.format_float_scientific(x, unique=True)) for x in row]
        assert [d.normalize() for d in item["embedding"]] == [d.normalize() for d in shortest]
        assert all(np.float32(str(d)) == x for d, x in zip(item["embedding"], row, strict=True))


def test_thousands_of_texts_come_back_in_their_order(server: FakeServer) -> None:
    texts = [f"{number}" for number in range(10_000)]
    np.testing.assert_array_equal(rows(embed(server, input=texts)), expected(texts))
    message = refused(server, {"input": [*texts, "a"]}, "input")
    assert message == "input has 10001 texts, the limit is 10000 (max_inputs)"


def test_2048_texts_of_the_native_size_are_answered(server: FakeServer) -> None:
    texts = [f"text {number}" for number in range(2048)]
    answer = embed(server, input=texts, dimensions=DIM, encoding_format="float", user="mteb")
    np.testing.assert_array_equal(rows(answer), expected(texts))


@pytest.mark.parametrize(("dimensions", "cut"), [(1, 1), (3, 3), (8, 8), ("4", 4), (None, 8)])
def test_dimensions_cut_and_normalise_again(server: FakeServer, dimensions: Any, cut: int) -> None:
    got = rows(embed(server, dimensions=dimensions))
    np.testing.assert_array_equal(got, expected(TEXTS, cut))
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("model", [NAME, "heads"])  # in memory, and known by its files alone
@pytest.mark.parametrize("dimensions", [0, -1, DIM + 1, 10**9])
def test_dimensions_out_of_range_are_refused(
    server: FakeServer, model: str, dimensions: int
) -> None:
    body = {"input": "a", "model": model, "dimensions": dimensions}
    message = refused(server, body, "dimensions")
    assert message == f"dimensions must be 1 to {DIM}, not {dimensions}"


@pytest.mark.parametrize("body", [{}, {"input": None}, {"input": []}])
def test_no_input_is_refused(server: FakeServer, body: dict[str, Any]) -> None:
    assert refused(server, body, "input") == "input must not be empty"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (True, "input must be a string or a list"),
        (5, "input must be a string or a list"),
        (1.5, "input must be a string or a list"),
        ({"text": "a"}, "input must be a string or a list"),
        ([None], "input[0] is not a string"),
        (["a", 5], "input[1] is not a string"),
        (["a", ["b"]], "input[1] is not a string"),
        ([True], "input[0] is not a string"),
        ([1.5], "input[0] is not a string"),
        (["a", "\ud800"], "input[1] is not valid Unicode"),
        ("\udc00", "input is not valid Unicode"),
    ],
    ids=ascii,
)
def test_input_of_another_kind_is_refused(server: FakeServer, given: Any, words: str) -> None:
    assert words in refused(server, {"input": given}, "input")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dimensions", 1.5),
        ("dimensions", True),
        ("encoding_format", "hex"),
        ("truncate_prompt_tokens", 0),
        ("truncate_prompt_tokens", -2),
        ("truncate_prompt_tokens", True),
        ("truncation_side", "middle"),
        ("add_special_tokens", "maybe"),
        ("keep_alive", "soon"),
        ("model", 5),
        ("prompt_name", ["query"]),
    ],
)
def test_a_bad_field_is_refused_by_name(server: FakeServer, field: str, value: Any) -> None:
    assert field in refused(server, {"input": "a", field: value}, field)


def test_null_in_every_field_is_the_default(server: FakeServer) -> None:
    names = (
        *("model", "encoding_format", "dimensions", "user", "truncate_prompt_tokens"),
        *("truncation_side", "add_special_tokens", "prompt_name", "input_type", "instruction"),
        *("outputs", "keep_alive"),
    )
    nulls: dict[str, Any] = dict.fromkeys(names)
    assert embed(server, **nulls)["data"] == embed(server)["data"]


@pytest.mark.parametrize("user", [5, {"id": 1}, ["a"], "someone"])
def test_user_and_unknown_fields_are_ignored(server: FakeServer, user: Any) -> None:
    answer = embed(server, user=user, extra_body={"a": 1}, stream="whatever")
    assert answer["data"] == embed(server)["data"]


@pytest.mark.parametrize(
    ("limit", "room"), [(-1, ROOM), (5, 3), ("5", 3), (10**6, ROOM), (2, 0), (None, ROOM)]
)
def test_truncate_prompt_tokens_lowers_the_limit(server: FakeServer, limit: Any, room: int) -> None:
    answer = embed(server, truncate_prompt_tokens=limit)
    np.testing.assert_array_equal(rows(answer), expected(TEXTS, limit=room))


@pytest.mark.parametrize(
    ("side", "kept"), [("left", "efgh"), ("LEFT", "efgh"), ("right", "abcd"), (None, "abcd")]
)
def test_truncation_side_says_which_end_goes(server: FakeServer, side: Any, kept: str) -> None:
    answer = embed(server, input="abcdefgh", truncate_prompt_tokens=6, truncation_side=side)
    np.testing.assert_array_equal(rows(answer), expected([kept]))


@pytest.mark.parametrize("added", [True, "true", "True", None, False, "false", "False"])
def test_special_tokens_can_be_left_out(server: FakeServer, added: Any) -> None:
    has_special = str(added).lower() != "false"
    ids = [START, *map(ord, "abc"), END] if has_special else [*map(ord, "abc")]
    answer = embed(server, input="abc", add_special_tokens=added)
    np.testing.assert_array_equal(rows(answer), of_tokens([FakeTokens(ids)]))
    assert answer["usage"]["prompt_tokens"] == len(ids)


def test_a_text_of_no_token_at_all_is_refused(server: FakeServer) -> None:
    message = refused(server, {"input": ["a", ""], "add_special_tokens": False}, None)
    assert message.startswith("input 1 has no tokens")


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt_name": "shout"}, "HEY "),
        ({"input_type": "query"}, "q:"),
        ({"input_type": "search_document"}, "p:"),
        ({"prompt_name": ""}, ""),
    ],
)
def test_a_prompt_goes_before_each_text(
    server: FakeServer, fields: dict[str, Any], prompt: str
) -> None:
    answer = embed(server, **fields)
    np.testing.assert_array_equal(rows(answer), expected([prompt + text for text in TEXTS]))


def test_an_unknown_prompt_is_refused(server: FakeServer) -> None:
    assert "'nope'" in refused(server, {"input": "a", "prompt_name": "nope"}, None)


def test_a_reranker_is_refused(server: FakeServer) -> None:
    message = refused(server, {"input": "a", "model": "ranker"}, "model")
    assert message == "model 'ranker' is a reranker: it scores pairs and has no vectors"


@pytest.mark.parametrize("model", [NAME, f"{NAME}:latest", f"org/{NAME}", f"/a/b/{NAME}", None, ""])
def test_a_model_is_echoed_as_sent(server: FakeServer, model: str | None) -> None:
    assert embed(server, model=model)["model"] == (model or NAME)


def test_headers_tell_times_and_tokens(server: FakeServer) -> None:
    answer: httpx.Response = server.post(PATHS[0], {"input": ["abc", ""]})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-compute-tokens"] == "7"
    for name in ("queue", "tokenization", "inference", "total"):
        assert float(answer.headers[f"x-{name}-time"]) >= 0
