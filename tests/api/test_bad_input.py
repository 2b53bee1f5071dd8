"""Whatever a client sends, it gets one JSON error that it can read, and nobody else notices."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.servers import ROOT, Server
from tests.serving.fake_engine import NAME, FakeServer, serve_fake

MAX_BODY_BYTES = 64 << 20
HUGE = 100_000_000
DEPTH = 100_000
INTERNALS = re.compile(
    rf"Traceback|site-packages|\.py\b|File \"|0x[0-9a-f]{{6}}|{re.escape(str(ROOT))}"
)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with serve_fake(max_inputs=5, max_body_bytes=4096) as running:
        yield running


@pytest.fixture(scope="module")
def client(stand_in_server: Server) -> Iterator[httpx.Client]:
    with stand_in_server.client() as running:
        yield running


@pytest.fixture(scope="module")
def good(client: httpx.Client) -> NDArray[np.float32]:
    return embed_good(client)


def embed_good(client: httpx.Client) -> NDArray[np.float32]:
    answer = client.post("/api/embed", json={"input": ["still", "serving"]})
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["embeddings"], np.float32)


def error_text(answer: httpx.Response, status: int) -> str:
    """The one text of a well-formed error."""
    assert answer.status_code == status, answer.text[:300]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert body.keys() == {"error"}
    text = body["error"]
    assert isinstance(text, str)
    assert text
    assert not INTERNALS.search(text), text
    return text


@dataclass(frozen=True, slots=True)
class Bad:
    """A body, and the words that its error must have."""

    name: str
    body: bytes
    words: str
    status: int = 400


def field(name: str, value: Any, words: str = "") -> Bad:
    shown = json.dumps(value)
    return Bad(
        f"{name}={shown[:20]}", json.dumps({"input": "a", name: value}).encode(), words or name
    )


def fields(name: str, *values: Any, words: str = "") -> list[Bad]:
    return [field(name, value, words) for value in values]


def raw(name: str, text: str | bytes, words: str, status: int = 400) -> Bad:
    return Bad(name, text if isinstance(text, bytes) else text.encode(), words, status)


NOT_JSON = "invalid JSON"
SURROGATE = "not valid Unicode: it has a lone surrogate"
DEEP = {
    "lists": "[" * DEPTH + "]" * DEPTH,
    "objects": '{"a":' * DEPTH + "1" + "}" * DEPTH,
    "unclosed lists": "[" * DEPTH,
}
NOT_INTEGERS: list[Any] = ["x", "", 1.5, [], {}, True, False, 10**30]
BAD = [
    raw("no body", "", "missing request body"),
    raw("only spaces", " \r\n\t ", "missing request body"),
    raw("cut off", '{"input": ', NOT_JSON),
    raw("cut off in an escape", '{"input": "\\u12', NOT_JSON),
    raw("two objects", '{"input": "a"}{}', NOT_JSON),
    raw("single quotes", "{'input': 'a'}", NOT_JSON),
    raw("a form", "input=a&model=b", NOT_JSON),
    raw("a trailing comma", '{"input": "a",}', NOT_JSON),
    raw("a control character", b'{"input": "a\x00b"}', NOT_JSON),
    raw("NaN", '{"input": "a", "dimensions": NaN}', NOT_JSON),
    raw("Infinity", '{"input": "a", "dimensions": Infinity}', NOT_JSON),
    raw("-Infinity beside an escape", '{"input": "\\u0061", "x": -Infinity}', NOT_JSON),
    raw("NaN beside an escape", '{"input": "\\u0061", "x": NaN}', NOT_JSON),
    raw("1e400", '{"input": "a", "keep_alive": 1e400}', "infinity"),
    raw("1e400 beside an escape", '{"input": "\\u0061", "keep_alive": 1e400}', "infinity"),
    raw("invalid UTF-8", b'{"input": "\xff\xfe"}', NOT_JSON),
    raw("invalid UTF-8 beside an escape", b'{"input": "\\u0061\xff"}', NOT_JSON),
    raw("a surrogate in UTF-8", b'{"input": "\xed\xa0\x80"}', NOT_JSON),
    raw("UTF-16", '{"input": "a"}'.encode("utf-16"), NOT_JSON),
    raw("gzip", b"\x1f\x8b\x08\x00\x00", NOT_JSON),
    *(raw(f"{n} in input", f'{{"input": {d}', NOT_JSON) for n, d in DEEP.items()),
    *(raw(f"{n} as the body", d, NOT_JSON) for n, d in DEEP.items()),
    *(
        raw(f"{n} beside an escape", f'{{"x": "\\u0061", "y": {d}}}', NOT_JSON)
        for n, d in DEEP.items()
    ),
    *(
        raw(f"a body that is {text}", text, f"must be a JSON object, not {kind}")
        for text, kind in [
            ("[]", "an array"),
            ('"a"', "a string"),
            ("1", "a number"),
            ("-1.5", "a number"),
            ("true", "a boolean"),
            ("null", "null"),
        ]
    ),
    raw("a lone surrogate", '{"input": ["a", "b", "\\ud800"]}', f"input[2] is {SURROGATE}"),
    raw("the low half", '{"input": ["\\udc00"]}', f"input[0] is {SURROGATE}"),
    raw("halves in the wrong order", '{"input": ["\\udc00\\ud800"]}', f"input[0] is {SURROGATE}"),
    raw("a lone surrogate as input", '{"input": "\\ud800"}', f"input is {SURROGATE}"),
    raw("in model", '{"input": "a", "model": "\\ud800"}', f"model is {SURROGATE}"),
    raw(
        "in the path of a model that is there",
        '{"input": "a", "model": "\\ud800/all-MiniLM-L6-v2"}',
        f"model is {SURROGATE}",
    ),
    raw("in encoding_format", '{"input": "a", "encoding_format": "\\ud800"}', "encoding_format"),
    raw("in truncate", '{"input": "a", "truncate": "\\ud800"}', "truncate"),
    raw("in dimensions", '{"input": "a", "dimensions": "\\ud800"}', "dimensions"),
    raw("in keep_alive", '{"input": "a", "keep_alive": "\\ud800"}', "keep_alive"),
    *fields("input", 5, 1.5, True, False, {}, {"text": "a"}, words="invalid input type"),
    field("input", ["a", 1], "input[1] is not a string"),
    field("input", ["a", "b", None], "input[2] is not a string"),
    field("input", [["a"]], "input[0] is not a string"),
    field("input", [{}], "input[0] is not a string"),
    *fields("model", 5, [], {}, True, ["all-MiniLM-L6-v2"]),
    *fields("encoding_format", "hex", "", "FLOAT", 5, [], {}, True),
    *fields("truncate", "maybe", "", 2, -1, 0.5, [], {}),
    *fields("dimensions", *NOT_INTEGERS),
    *fields("options", 5, "x", [], True),
    *fields("options", *({"num_ctx": v} for v in NOT_INTEGERS), words="options.num_ctx"),
    *fields("keep_alive", "soon", "", [], {}, True, "1" * 100_000),
    *(
        raw(f"10**400 in {name}", f'{{"input": "{text}", "{name}": {10**400}}}', NOT_JSON)
        for name in ("dimensions", "keep_alive", "unknown")
        for text in ("a", "\\u0061")
    ),
    raw("10,000 digits", f'{{"input": "\\u0061", "dimensions": {"9" * 10_000}}}', NOT_JSON),
    raw("digits in a text", f'{{"input": "a", "dimensions": "{"9" * 10_000}"}}', "dimensions"),
    raw("unknown", '{"input": "a", "model": "nope"}', "model 'nope' not found", 404),
    Bad(
        "too long",
        json.dumps({"input": ["a", "word " * 2000], "truncate": False}).encode(),
        "the input length exceeds the context length: input 1 has 2002 tokens, the limit is 256",
    ),
    Bad(
        "too many",
        json.dumps({"input": ["a"] * 10_001}).encode(),
        "input has 10001 texts, the limit is 10000 (max_inputs)",
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_is_refused_by_name_and_the_server_goes_on(
    client: httpx.Client, good: NDArray[np.float32], bad: Bad
) -> None:
    assert bad.words in error_text(client.post("/api/embed", content=bad.body), bad.status)
    np.testing.assert_array_equal(embed_good(client), good)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method_is_refused(client: httpx.Client, method: str) -> None:
    answer = client.request(method, "/api/embed")
    assert error_text(answer, 405) == "method not allowed"
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "path", ["/nope", "/api", "/api/embed/x", "/%00", "/../../etc/passwd", "/天"]
)
def test_an_unknown_path_is_not_found(client: httpx.Client, path: str) -> None:
    assert error_text(client.get(path), 404) == "not found"
    assert error_text(client.post(path, json={"input": "a"}), 404) == "not found"


def test_a_body_of_100_mb_is_refused_in_words_the_client_can_read(client: httpx.Client) -> None:
    body = b'{"input": "' + b"a" * HUGE + b'"}'
    text = error_text(client.post("/api/embed", content=body), 413)
    assert text == f"the body is larger than {MAX_BODY_BYTES} bytes (max_body_bytes)"
    assert embed_good(client).shape == (2, 384)


def test_a_chunked_body_of_100_mb_without_a_length_is_refused(client: httpx.Client) -> None:
    def body() -> Iterator[bytes]:
        yield b'{"input": "'
        for _ in range(HUGE >> 20):
            yield b"a" * (1 << 20)
        yield b'"}'

    answer = client.post("/api/embed", content=body())
    assert "content-length" not in answer.request.headers
    assert "max_body_bytes" in error_text(answer, 413)
    assert embed_good(client).shape == (2, 384)


def test_a_huge_body_after_expect_100_continue_is_refused(stand_in_server: Server) -> None:
    head = (
        f"POST /api/embed HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Content-Length: {HUGE}\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", stand_in_server.port), timeout=60) as connection:
        connection.sendall(head.encode())
        first = connection.recv(1 << 16)
        if first.startswith(b"HTTP/1.1 100 "):
            connection.sendall(b"a" * HUGE)
            first = b""
        answer = first + b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"max_body_bytes" in answer


@pytest.mark.parametrize(("padding", "status"), [(4096 - 13, 200), (4096 - 12, 413)])
def test_the_limit_of_the_body_is_exact(fake: FakeServer, padding: int, status: int) -> None:
    with fake.client() as client:
        answer = client.post("/api/embed", content=b'{"input":"a"}' + b" " * padding)
    assert answer.status_code == status


@pytest.mark.parametrize(("count", "status"), [(5, 200), (6, 400)])
def test_the_limit_of_inputs_is_exact(fake: FakeServer, count: int, status: int) -> None:
    answer = fake.embed({"input": ["a"] * count})
    assert answer.status_code == status
    assert status == 200 or "has 6 texts, the limit is 5 (max_inputs)" in answer.text


def test_requests_that_share_a_step_with_bad_ones_are_untouched(fake: FakeServer) -> None:
    bodies: list[dict[str, Any]] = [
        {"input": ["left", "also left"]},
        {"input": ["fits", "x" * 99], "truncate": False},
        {"input": ["fits", 5]},
        {"input": ["right", "x" * 99]},
    ]
    alone = [fake.embed(body) for body in bodies]
    fake.engine.steps.clear()
    with ThreadPoolExecutor(len(bodies)) as pool:
        with fake.held_worker():
            running = [pool.submit(fake.embed, body) for body in bodies]
            assert "input 1 has 101 tokens" in error_text(running[1].result(), 400)
            assert "input[1] is not a string" in error_text(running[2].result(), 400)
            fake.wait_for(lambda worker: worker.num_waiting_jobs == 2)
        together = [future.result() for future in running]
    assert fake.engine.steps == [(NAME, 1), (NAME, 4)]
    for beside, before in zip(together, alone, strict=True):
        assert beside.status_code == before.status_code
        assert beside.json().get("embeddings") == before.json().get("embeddings")


def test_a_failing_step_is_a_500_without_internals_and_the_next_one_works(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(step: object) -> None:
        raise RuntimeError(f"secret in {ROOT}")

    with monkeypatch.context() as patch:
        patch.setattr(fake.model, "run", explode)
        text = error_text(fake.embed({"input": "a"}), 500)
    assert "secret" not in text
    assert fake.embed({"input": "a"}).status_code == 200


def test_a_bug_of_ours_is_a_500_without_internals(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*arguments: object) -> None:
        raise KeyError(f"secret in {ROOT}")

    with monkeypatch.context() as patch:
        patch.setattr(fake.model, "tokenize", explode)
        assert "secret" not in error_text(fake.embed({"input": "a"}), 500)
    assert fake.embed({"input": "a"}).status_code == 200


def test_good_vectors_beside_bad_requests_are_those_computed_alone(client: httpx.Client) -> None:
    texts = [["alone or not"], ["a b c", ""], ["天空为什么是蓝色的？"], ["word " * 300, "short"]]
    wanted = [client.post("/api/embed", json={"input": t}).json()["embeddings"] for t in texts]
    stop = threading.Event()

    def misbehave() -> int:
        count = 0
        while not stop.is_set() or not count:
            bad = BAD[count % len(BAD)]
            error_text(client.post("/api/embed", content=bad.body), bad.status)
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        bad = [pool.submit(misbehave) for _ in range(4)]
        good = [pool.submit(client.post, "/api/embed", json={"input": t}) for t in texts * 10]
        answers = [future.result() for future in good]
        stop.set()
        assert all(future.result() for future in bad)
    for answer, rows in zip(answers, wanted * 10, strict=True):
        np.testing.assert_allclose(answer.json()["embeddings"], rows, atol=1e-5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ("model", "input", "encoding_format", "truncate", "dimensions", "options", "keep_alive")
OPTIONS = st.fixed_dictionaries({}, optional={"num_ctx": JSON, "temperature": JSON})
BODY = JSON | st.fixed_dictionaries(
    {}, optional={**dict.fromkeys(FIELDS, JSON), "options": OPTIONS}
)
bounded = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@bounded
@given(body=BODY)
def test_no_json_value_is_a_server_error(fake: FakeServer, body: Any) -> None:
    check_no_server_error(fake, json.dumps(body).encode())


@bounded
@given(body=st.binary(max_size=200))
def test_no_bytes_are_a_server_error(fake: FakeServer, body: bytes) -> None:
    check_no_server_error(fake, body)


def check_no_server_error(fake: FakeServer, body: bytes) -> None:
    with fake.client() as client:
        answer = client.post("/api/embed", content=body)
    if answer.status_code != 200:
        assert answer.status_code in (400, 404, 413)
        error_text(answer, answer.status_code)


ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=300)


@bounded
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=4))
def test_any_text_gives_unit_vectors_or_names_the_surrogate(
    client: httpx.Client, texts: list[str]
) -> None:
    answer = client.post("/api/embed", content=json.dumps({"input": texts}).encode())
    lone = [i for i, text in enumerate(texts) if re.search("[\ud800-\udfff]", text)]
    if lone:
        assert error_text(answer, 400).startswith(f"input[{lone[0]}] is not valid Unicode")
        return
    rows = np.array(answer.json()["embeddings"], np.float32)
    assert rows.shape == (len(texts), 384)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
