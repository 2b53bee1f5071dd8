"""POST /api/embed over a fake model: what the dialect accepts, answers and refuses."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from api.http import body as writing
from serving import embedding as vectors
from settings import parse_keep_alive
from tests.serving.fake_engine import NAME, FakeServer, serve_fake
from tests.serving.fake_models import END, START, FakeTokens, views_of

TEXTS = ["why is the sky blue?", "", "天空", "a", "a"]  # the first is longer than the limit
TOO_LONG = "the input length exceeds the context length"


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with serve_fake() as running:
        yield running


def expected(texts: list[str], dimensions: int | None = None, limit: int = 16) -> NDArray[Any]:
    tokens = [FakeTokens([START, *map(ord, text[: limit - 2]), END]) for text in texts]
    return vectors.finish(np.stack([views_of(t).dense for t in tokens]), dimensions)


def rows(answer: httpx.Response) -> NDArray[np.float32]:
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["embeddings"], np.float32)


def test_a_list_gives_one_unit_vector_a_text_in_order(server: FakeServer) -> None:
    got = rows(server.embed({"input": TEXTS}))
    np.testing.assert_array_equal(got, expected(TEXTS))
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


def test_a_string_gives_a_list_of_one_vector(server: FakeServer) -> None:
    np.testing.assert_array_equal(rows(server.embed({"input": "one"})), expected(["one"]))


@pytest.mark.parametrize(
    "body", [{}, {"input": None}, {"input": ""}, {"input": []}, {"input": [], "dimensions": 4}]
)
def test_no_input_loads_the_model_and_answers_no_vector(
    server: FakeServer, body: dict[str, Any]
) -> None:
    answer = server.embed(body)
    assert answer.status_code == 200
    assert answer.json()["embeddings"] == []
    assert answer.json()["model"] == "Fake-Model"


def test_an_empty_text_inside_a_list_is_a_real_text(server: FakeServer) -> None:
    assert rows(server.embed({"input": [""]})).shape == (1, 8)


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", None])
def test_the_body_is_json_whatever_its_content_type(
    server: FakeServer, content_type: str | None
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    with server.client() as client:
        answer = client.post("/api/embed", content=b'{"input": "one"}', headers=headers)
    assert ("content-type" in answer.request.headers) == (content_type is not None)
    np.testing.assert_array_equal(rows(answer), expected(["one"]))
    assert answer.headers["content-type"] == "application/json"


def test_base64_is_little_endian_float32_and_equals_the_numbers_bit_for_bit(
    server: FakeServer,
) -> None:
    texts = {"input": TEXTS}
    numbers = rows(server.embed({**texts, "encoding_format": "float"}))
    strings = server.embed({**texts, "encoding_format": "base64"}).json()["embeddings"]
    assert [base64.b64decode(s, validate=True) for s in strings] == [
        row.astype("<f4").tobytes() for row in numbers
    ]


def test_numbers_carry_the_shortest_digits_of_float32(server: FakeServer) -> None:
    raw = json.loads(server.embed({"input": TEXTS}).text, parse_float=Decimal)
    for row, wanted in zip(raw["embeddings"], expected(TEXTS), strict=True):
        shortest = [Decimal(np.format_float_scientific(x, unique=True)) for x in wanted]
        assert [d.normalize() for d in row] == [d.normalize() for d in shortest]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_any_float32_survives_the_json(values: list[float]) -> None:
    row = np.array([values], np.float32)
    read = np.array(json.loads(writing.dumps({"embeddings": row}))["embeddings"], np.float32)
    assert read.tobytes() == row.tobytes()


@pytest.mark.parametrize(
    ("dimensions", "cut"),
    [(1, 1), (3, 3), (8, 8), ("4", 4), (4.0, 4)]
    + [(d, 8) for d in (None, 0, -1, 9, 10**9, -(10**9))],
)
def test_dimensions_cut_and_normalise_again_and_are_ignored_out_of_range(
    server: FakeServer, dimensions: Any, cut: int
) -> None:
    got = rows(server.embed({"input": TEXTS, "dimensions": dimensions}))
    np.testing.assert_array_equal(got, expected(TEXTS, cut))
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("truncate", [None, True, "true", "True"])
def test_a_text_too_long_keeps_its_head(server: FakeServer, truncate: Any) -> None:
    got = rows(server.embed({"input": ["x" * 14 + "y" * 50], "truncate": truncate}))
    np.testing.assert_array_equal(got, expected(["x" * 14]))


@pytest.mark.parametrize("truncate", [False, "false", "False"])
def test_without_truncation_a_text_too_long_is_refused_by_name(
    server: FakeServer, truncate: Any
) -> None:
    answer = server.embed({"input": ["fits", "x" * 15], "truncate": truncate})
    assert answer.status_code == 400
    assert answer.json() == {"error": f"{TOO_LONG}: input 1 has 17 tokens, the limit is 16"}
    assert server.embed({"input": "x" * 14, "truncate": truncate}).status_code == 200


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({"num_ctx": 5}, 5),
        ({"num_ctx": "5"}, 5),
        ({"num_ctx": 4096}, 16),
        ({"num_ctx": 0}, 16),
        ({"num_ctx": -1}, 16),
        ({"num_ctx": None}, 16),
        ({}, 16),
        (None, 16),
        ({"temperature": 0.5, "num_gpu": "many", "stop": [], "seed": {}}, 16),
    ],
)
def test_num_ctx_lowers_the_limit_and_other_options_are_ignored(
    server: FakeServer, options: Any, limit: int
) -> None:
    answer = server.embed({"input": ["x" * 50], "options": options})
    np.testing.assert_array_equal(rows(answer), expected(["x" * 50], limit=limit))
    assert answer.json()["prompt_eval_count"] == limit
    refused = server.embed({"input": ["x" * 50], "options": options, "truncate": False})
    assert refused.json() == {"error": f"{TOO_LONG}: input 0 has 52 tokens, the limit is {limit}"}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (300, 300.0),
        (0.5, 0.5),
        (-1, -1.0),
        ("0", 0.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("100ms", 0.1),
        ("10us", 1e-5),
        ("10µs", 1e-5),  # micro sign
        ("10μs", 1e-5),  # Greek mu: Go takes both
        ("-1s", -1.0),
        ("+2s", 2.0),
        ("2h45m30.5s", 9930.5),
    ],
)
def test_keep_alive_takes_seconds_and_go_durations(
    server: FakeServer, value: Any, seconds: float | None
) -> None:
    assert parse_keep_alive(value) == (pytest.approx(seconds) if seconds is not None else None)
    assert server.embed({"input": "a", "keep_alive": value}).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        *("", "-", "5", "m", "5 m", "5m ", "5d", "1h-5m", "soon", "1e3s", "٥m"),
        *("s" * 100_000, "1" * 100_000, "9" * 400 + "h"),
        *(True, [], {}, [1]),
    ],
)
def test_a_bad_keep_alive_is_refused_by_name(server: FakeServer, value: Any) -> None:
    answer = server.embed({"input": "a", "keep_alive": value})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("keep_alive: must be seconds or a duration")


@pytest.mark.parametrize(
    "model",
    [
        "Fake-Model",
        "FAKE-MODEL",
        "Fake-Model:latest",
        "org/Fake-Model",
        "org/fake-model:latest",
        "/abs/path/Fake-Model",
        "/abs/path/Fake-Model/",
    ],
)
def test_a_model_is_known_under_its_names_and_echoed_as_sent(
    server: FakeServer, model: str
) -> None:
    answer = server.embed({"model": model, "input": "a"})
    assert answer.status_code == 200
    assert answer.json()["model"] == model


@pytest.mark.parametrize("body", [{}, {"model": ""}, {"model": None}])
def test_no_model_means_the_default_one_by_its_name(
    server: FakeServer, body: dict[str, Any]
) -> None:
    assert server.embed({**body, "input": "a"}).json()["model"] == "Fake-Model"


@pytest.mark.parametrize(
    "model",
    [
        "nope",
        "Fake",
        "Fake-Model:v2",
        "Fake-Model/other",
        "/",
        "..",
        "Fake-Model ",
        "天",
        "x" * 9999,
    ],
)
def test_an_unknown_model_is_not_found(server: FakeServer, model: str) -> None:
    answer = server.embed({"model": model, "input": "a"})
    assert answer.status_code == 404
    assert answer.json() == {"error": f"model '{model}' not found"}


def test_an_unknown_model_is_not_found_also_without_input(server: FakeServer) -> None:
    assert server.embed({"model": "nope"}).status_code == 404


def test_null_in_every_optional_field_is_the_default(server: FakeServer) -> None:
    fields = ("model", "encoding_format", "truncate", "dimensions", "options", "keep_alive")
    answer = server.embed({"input": TEXTS, **dict.fromkeys(fields)})
    np.testing.assert_array_equal(rows(answer), expected(TEXTS))


def test_unknown_fields_are_ignored(server: FakeServer) -> None:
    answer = server.embed({"input": "a", "stream": False, "raw": {"deep": [1]}, "prompt": 5})
    np.testing.assert_array_equal(rows(answer), expected(["a"]))


def test_durations_are_whole_nanoseconds_and_tokens_are_counted(server: FakeServer) -> None:
    answer = server.embed({"input": ["abc", ""]}).json()
    assert answer.keys() == {
        "model",
        "embeddings",
        "total_duration",
        "load_duration",
        "prompt_eval_count",
    }
    assert type(answer["total_duration"]) is int
    assert answer["total_duration"] > 0
    assert answer["load_duration"] == int(server.resident(NAME).load_s * 1e9) > 0
    assert type(answer["load_duration"]) is int
    assert answer["prompt_eval_count"] == 5 + 2


def test_an_answer_carries_its_times_and_its_tokens(server: FakeServer) -> None:
    headers = server.embed({"input": ["abc", ""]}).headers
    for name in ("queue", "tokenization", "inference", "total"):
        assert re.fullmatch(r"\d+\.\d\d", headers[f"x-{name}-time"]), name
    assert headers["x-compute-tokens"] == "7"
    parts = ("queue", "tokenization", "inference")
    assert sum(float(headers[f"x-{p}-time"]) for p in parts) <= float(headers["x-total-time"]) + 0.1


@pytest.mark.parametrize("request_id", ["abc-123", "a.b:c/d+e=f@g_h", "x" * 128])
def test_a_harmless_request_id_comes_back(server: FakeServer, request_id: str) -> None:
    for body in ({"input": "a"}, {"input": 5}):
        headers = server.embed(body, headers={"x-request-id": request_id}).headers
        assert headers["x-request-id"] == request_id


@pytest.mark.parametrize(
    "request_id", [None, "", "a b", "x" * 129, "<script>", 'a"b', "é", "<" * 256 + "a"]
)
def test_any_other_request_id_is_replaced(server: FakeServer, request_id: str | None) -> None:
    sent = {} if request_id is None else {"x-request-id": request_id.encode()}
    seen = {server.embed({"input": "a"}, headers=sent).headers["x-request-id"] for _ in range(2)}
    assert len(seen) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in seen)


def test_errors_carry_an_id_and_the_total_time(server: FakeServer) -> None:
    headers = server.embed({"input": 5}).headers
    assert headers["x-request-id"]
    assert float(headers["x-total-time"]) >= 0
