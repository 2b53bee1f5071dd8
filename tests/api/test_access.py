"""API keys: no route but the listed ones answers without one, however it is asked."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Mount

from api import page
from embedding import create_app
from tests.api.error_shapes import dialect_by_path, fault_in, fault_of
from tests.serving.fake_engine import NAME, FakeServer, serve_fake

KEYS = ("first-key-7f3a", "Second_key:+/=9", "third!#$%&'()*")
OPEN = {"/", "/health", "/live", "/ready", "/metrics", "/docs"}
ASSETS = {"/docs/oauth2-redirect", "/openapi.json"}
ASSETS_BELOW = ("/page/", "/static-offline-docs/")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with serve_fake(api_key=", ".join(KEYS), log_level="debug") as running:
        yield running


def routes_of(routes: Any, prefix: str = "") -> Iterator[tuple[str, frozenset[str]]]:
    """Every path with its methods, of included routers and mounts too."""
    for route in routes:
        if isinstance(route, Mount):
            folder = Path(str(getattr(route.app, "directory", "")))
            inside = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
            assert inside, f"what is below {route.path}?"
            yield from ((f"{prefix}{route.path}/{name}", frozenset({"GET"})) for name in inside)
        elif (included := getattr(route, "original_router", None)) is not None:
            yield from routes_of(included.routes, prefix + route.include_context.prefix)
        else:
            yield prefix + route.path, frozenset(route.methods)


def every_path() -> dict[str, frozenset[str]]:
    """Path parameters are filled in."""
    page_files = Path(page.__file__).with_name("page_files")
    found: dict[str, frozenset[str]] = {}
    for path, methods in routes_of(create_app().routes):
        names = [f.name for f in page_files.iterdir()] if path.startswith("/page/") else ["x"]
        for name in names:
            filled = re.sub(r"\{\w+(:path)?\}", name, path)
            found[filled] = found.get(filled, frozenset()) | methods
    return found


PATHS = every_path()


def is_meant_to_be_open(path: str) -> bool:
    return path in OPEN | ASSETS or path.startswith(ASSETS_BELOW)


def check_refused(answer: httpx.Response, path: str) -> None:
    assert answer.status_code == 401, (path, answer.text)
    assert answer.headers["www-authenticate"] == "Bearer"
    if answer.request.method != "HEAD":
        fault = fault_of(answer, dialect_by_path(path), 401)
        assert "Authorization: Bearer" in fault.text
        assert fault.code == ("invalid_api_key" if dialect_by_path(path) == "openai" else None)
    for key in KEYS:
        assert key not in f"{answer.text} {answer.headers}"


def raw_request(
    server: FakeServer, method: str, target: str, authorization: bytes | None = None
) -> tuple[int, bytes]:
    """Sent as it is: no client tidies the path or the header up. Status and body."""
    host, port = server.url.removeprefix("http://").split(":")
    lines = [f"{method} {target} HTTP/1.1".encode(), b"Host: x", b"Connection: close"]
    if authorization is not None:
        lines.append(b"Authorization: " + authorization)
    sent = b"\r\n".join([*lines, b"Content-Length: 2", b"", b"{}"])
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    top, _, body = answer.partition(b"\r\n\r\n")
    return int(top.split()[1]), body


def test_the_walk_finds_every_route_that_the_document_names(server: FakeServer) -> None:
    document = server.get("/openapi.json").json()["paths"]
    named = {re.sub(r"\{\w+\}", "x", path) for path in document}
    assert named <= set(PATHS)
    assert len(PATHS) > 30
    assert any(path.startswith("/static-offline-docs/") for path in PATHS)
    assert "/page/page.js" in PATHS


def test_without_a_key_only_the_open_routes_answer(server: FakeServer) -> None:
    """Every method, those that a route does not have too."""
    answering = set()
    with server.client() as client:
        for path in PATHS:
            for method in METHODS:
                answer = client.request(method, path)
                if is_meant_to_be_open(path):
                    assert answer.status_code != 401, (method, path)
                    answering |= {path} if answer.status_code == 200 else set()
                else:
                    check_refused(answer, path)
    assert answering >= OPEN & set(PATHS)
    assert {path for path in answering if not is_meant_to_be_open(path)} == set()


def closed(paths: Any = PATHS) -> list[tuple[str, str]]:
    """A method of each closed route."""
    return [(sorted(PATHS[path])[0], path) for path in paths if not is_meant_to_be_open(path)]


WRONG: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("a scheme alone", b"Bearer"),
    ("a scheme and a space", b"Bearer "),
    ("another", b"Bearer wrong"),
    ("a key's beginning", b"Bearer first-key-7f3"),
    ("a key and more", b"Bearer first-key-7f3aa"),
    ("another case", b"Bearer FIRST-KEY-7F3A"),
    ("no scheme", b"first-key-7f3a"),
    ("another scheme", b"Basic first-key-7f3a"),
    ("token", b"Token first-key-7f3a"),
    ("a tab", b"Bearer\tfirst-key-7f3a"),
    ("two keys", b"Bearer first-key-7f3a, Second_key:+/=9"),
    ("the setting", b"Bearer first-key-7f3a,Second_key:+/=9,third!#$%&'()*"),
    ("twice the scheme", b"Bearer Bearer first-key-7f3a"),
    ("quotes", b'Bearer "first-key-7f3a"'),
    ("latin-1", b"Bearer caf\xe9"),
    ("UTF-8", "Bearer 天空".encode()),
    ("no UTF-8", b"Bearer \xff\xfe\x80"),
    ("a scheme of bytes", b"\xff\xfe first-key-7f3a"),
    ("long", b"Bearer " + b"x" * 4000),
]


@pytest.mark.parametrize("header", [h for _, h in WRONG], ids=[name for name, _ in WRONG])
def test_a_wrong_key_is_refused(server: FakeServer, header: bytes) -> None:
    for method, path in closed(["/api/embed", "/v1/models", "/info", "/redoc"]):
        status, body = raw_request(server, method, path, header)
        assert status == 401, (path, body)
        fault_in(json.loads(body), dialect_by_path(path), 401)


def test_a_wrong_key_is_refused_by_every_closed_route(server: FakeServer) -> None:
    with server.client() as client:
        for method, path in closed():
            answer = client.request(method, path, headers={"Authorization": "Bearer wrong"})
            check_refused(answer, path)
            assert method == "HEAD" or "wrong API key" in answer.text


def test_every_closed_route_answers_with_a_key(server: FakeServer) -> None:
    with server.client() as client:
        for method, path in closed():
            answer = client.request(method, path, headers={"Authorization": f"Bearer {KEYS[0]}"})
            assert answer.status_code in (200, 400, 404, 422), (path, answer.text)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "form", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}  ", " Bearer {}", "bEarer \t{}\t"]
)
def test_each_key_opens_with_any_case_and_space(server: FakeServer, key: str, form: str) -> None:
    assert raw_request(server, "POST", "/api/embed", form.format(key).encode())[0] == 200


RAW_PATHS = [
    *("/api/tags/", "//api/tags", "/api//tags", "/API/TAGS", "/api/tags?x=/health"),
    *("/v1/../health", "/health/../v1/models", "/./v1/models", "/health/..", "/docs/../info"),
    *("/page/../info", "/page/../../info", "/page/..%2finfo", "/page/%2e%2e/info"),
    *("/%76%31/models", "/v1%2fmodels", "/v1/models%00", "/api/tags%2f", "/%2fapi/tags"),
    *("/health%2f..%2finfo", "/health;/info", "/health/", "/docs/", "//health", "/healthx"),
    *("/docs/../v1/models", "/static-offline-docs/../info", "/static-offline-docs/%2e%2e/info"),
    *("/static-offline-docs/..%2f..%2finfo", "/static-offline-docsx", "/pagex", "/page"),
    *("/openapi.json/../info", "http://x/v1/models", "http://x/health/../info", "/redoc/"),
]


@pytest.mark.parametrize("target", RAW_PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_no_spelling_of_a_path_reaches_what_is_closed(
    server: FakeServer, method: str, target: str
) -> None:
    """What passes the gate is a 404 or a hint to the open path: never a closed route's answer."""
    status, body = raw_request(server, method, target)
    assert status in (400, 401, 404, 405, 307), (status, body)
    assert NAME.encode() not in body
    assert b'"version"' not in body


def test_the_key_is_asked_for_before_the_body_is_read(server: FakeServer) -> None:
    """The client never sends what it announced, and is answered."""
    host, port = server.url.removeprefix("http://").split(":")
    head = b"POST /api/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 401 ")


def test_who_sends_a_large_body_without_a_key_can_read_the_answer(server: FakeServer) -> None:
    with server.client() as client:
        check_refused(client.post("/api/embed", content=b"x" * (30 << 20)), "/api/embed")
        assert client.get("/health").status_code == 200


def test_a_bad_body_without_a_key_is_a_401(server: FakeServer) -> None:
    with server.client() as client:
        for path in ("/api/embed", "/v1/embeddings", "/embed", "/rerank"):
            check_refused(client.post(path, content=b"{"), path)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer any", "Basic x", "caf\xe9"])
def test_without_keys_any_header_is_fine(header: str | None) -> None:
    with serve_fake() as server:
        headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
        assert server.embed({"input": "a"}, headers=headers).status_code == 200


def test_nothing_closed_answers_before_the_server_is_ready(server: FakeServer) -> None:
    with serve_fake(ready=False) as starting:
        for path in ("/v1/models", "/info"):
            answer = starting.get(path)
            fault_of(answer, dialect_by_path(path), 503)
            assert int(answer.headers["retry-after"]) > 0
        assert starting.get("/live").status_code == 200


def test_no_key_is_told_to_anybody(
    server: FakeServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*arguments: object) -> None:
        raise RuntimeError("a bug")

    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    for name in ("embedding", "uvicorn"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    told = [repr(server.server.settings), str(server.server.settings)]
    with caplog.at_level(logging.DEBUG), server.client() as client:
        for path in ("/openapi.json", "/docs", "/health", "/", "/metrics"):
            told.append(client.get(path, headers=headers).text)
        told.append(client.post("/api/embed", json={"input": 5}, headers=headers).text)
        told.append(client.get("/v1/models", headers={"Authorization": "Bearer zzz"}).text)
        monkeypatch.setattr(server.model, "tokenize", explode)
        failed = client.post("/api/embed", json={"input": "a"}, headers=headers)
    assert failed.status_code == 500
    assert "a bug" in caplog.text, "what is logged is seen here"
    told += [failed.text, caplog.text]
    for key in (*KEYS, "zzz"):
        assert key not in "".join(told)
