"""The direct way to a route's function against FastAPI's own: nobody outside can tell which."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request, Response
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from api.app import create_app
from api.http import routes
from api.http.routes import Dispatcher, Route, Routes, Table
from serving.configuration import read_settings
from serving.server import Server
from tests.api.known_routes import POSTS
from tests.api.test_errors import CALLS, MAX_BODY_BYTES, NAME, PATHS, Call
from tests.serving import fake_engine
from tests.serving.fake_engine import FakeServer, serve_fake
from tests.serving.fake_models import write_three

MADE_ANEW = {"id", "created", "created_at", "modified_at", "expires_at"}
BODIES = [b"", b"{", b"[]", b"null", b"\xff", b'{"model": 5}', b'{"model": "\\ud800"}', b"{}"]
METHODS = ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]
PROBES = ["/", "/health", "/ready", "/live", "/api/tags", "/v1/models", "/info"]
# Of direct routes, and not their very path.
SPELLINGS = ["{}/", "/{}", "{}?model=nope", "{}#x", "{}%2f", "/nope{}"]


class NeverDirect(Dispatcher):
    def _is_direct(self, scope: Scope, route: Route) -> bool:
        return False


def without_direct_routes(make_server: Callable[[], Server]) -> FastAPI:
    app = create_app(make_server)
    (dispatcher,) = [layer for layer in app.user_middleware if "Dispatcher" in repr(layer)]
    dispatcher.cls = NeverDirect  # type: ignore[assignment]
    return app


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_three(tmp_path_factory.mktemp("models"), NAME)


class Pair:
    """Two servers of the same models: one with the direct way, one with FastAPI's own."""

    def __init__(self, direct: FakeServer, own: FakeServer) -> None:
        self.servers = direct, own
        self.clients = direct.client(), own.client()

    def check(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The answer of both."""
        direct, own = (client.request(method, path, **request) for client in self.clients)
        assert direct.status_code == own.status_code, (direct.text, own.text)
        assert direct.headers.keys() == own.headers.keys()
        for header in ("content-type", "allow", "retry-after", "x-compute-tokens"):
            assert direct.headers.get(header) == own.headers.get(header)
        assert told(direct) == told(own)
        return direct


def told(answer: httpx.Response) -> Any:
    """What it says, without what is another thing each time."""
    if answer.headers.get("content-type") != "application/json" or not answer.content:
        return answer.content
    return lasting(answer.json())


def lasting(value: Any) -> Any:
    if isinstance(value, list):
        return [lasting(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: None if key in MADE_ANEW or key.endswith("_duration") else lasting(item)
        for key, item in value.items()
    }


@pytest.fixture(scope="module")
def pair(root: Path) -> Iterator[Pair]:
    options: dict[str, Any] = {
        "models_dir": root,
        "pinned": [NAME, "embedder"],
        "max_body_bytes": MAX_BODY_BYTES,
    }
    with serve_fake(**options) as direct, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_engine, "create_app", without_direct_routes)
        with serve_fake(**options) as own:
            both = Pair(direct, own)
            yield both
            for client in both.clients:
                client.close()


def test_every_post_route_is_called_here() -> None:
    assert set(PATHS) == POSTS


def test_only_one_of_the_two_servers_takes_the_direct_way(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    original = routes._call

    async def noted(route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        taken.append(scope["server"][1])
        await original(route, scope, receive, send)

    monkeypatch.setattr(routes, "_call", noted)
    pair.check("POST", "/v1/embeddings", json={"input": "a", "model": "embedder"})
    assert taken == [int(pair.servers[0].url.rpartition(":")[2])]


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_both_ways_give_the_same_answer(pair: Pair, call: Call) -> None:
    assert pair.check("POST", call.path, json=call.body).status_code == 200


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_both_ways_give_the_same_error_of_a_model(pair: Pair, call: Call) -> None:
    assert pair.check("POST", call.path, json={**call.body, "model": "nope"}).status_code == 404
    broken = pair.check("POST", call.path, json={**call.body, "model": "broken"})
    assert broken.status_code == (400 if call.path == "/api/show" else 503)


@pytest.mark.parametrize("path", PATHS)
def test_both_ways_refuse_a_bad_body_in_the_same_words(pair: Pair, path: str) -> None:
    for content in BODIES:
        answer = pair.check("POST", path, content=content)
        assert answer.status_code in (200, 400, 422), content
    large = b'{"x":"' + b"x" * MAX_BODY_BYTES + b'"}'
    assert pair.check("POST", path, content=large).status_code == 413


@pytest.mark.parametrize("method", METHODS)
def test_both_ways_refuse_another_method_in_the_same_words(pair: Pair, method: str) -> None:
    for path in PATHS:
        assert pair.check(method, path).status_code == 405
    for path in PROBES:
        pair.check(method, path)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_both_ways_know_the_same_spellings_of_a_path(pair: Pair, spelling: str) -> None:
    for path in PATHS:
        pair.check("POST", spelling.format(path), json={})


def test_both_ways_hide_what_failed_inside(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(*arguments: object) -> None:
        raise RuntimeError("secret")

    caplog.set_level(logging.ERROR, "embedding.api")
    for server in pair.servers:
        for name in (NAME, "embedder"):
            model = server.resident(name).model
            for method in ("tokenize", "tokenize_pairs", "spell", "decode"):
                if hasattr(model, method):
                    monkeypatch.setattr(model, method, explode)
    num_failed = 0
    for call in CALLS:
        answer = pair.check("POST", call.path, json=call.body)
        assert "secret" not in answer.text
        num_failed += answer.status_code == 500
    assert num_failed >= len(CALLS) - 2  # /api/show and /api/generate compute nothing
    assert sum("failed" in text for text in caplog.messages) == 2 * num_failed


def counted(server: FakeServer) -> dict[tuple[str, str], float]:
    """(route, status) -> requests"""
    families = text_string_to_metric_families(server.get("/metrics").text)
    return {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "embedding_requests_total" and sample.labels["route"] != "/metrics"
    }


def test_both_ways_are_counted_by_the_same_routes(root: Path) -> None:
    with serve_fake(models_dir=root, pinned=[NAME]) as direct, pytest.MonkeyPatch.context() as p:
        p.setattr(fake_engine, "create_app", without_direct_routes)
        with serve_fake(models_dir=root, pinned=[NAME]) as own:
            for server in (direct, own):
                for call in CALLS:
                    server.post(call.path, call.body)
                    server.post(call.path, {**call.body, "model": 5})
                    server.get(call.path)
            counts = counted(direct)
            assert counts == counted(own)
    for path in PATHS:
        num_calls = sum(call.path == path for call in CALLS)
        assert counts[path, "200"] == num_calls, path
        assert sum(counts.get((path, bad), 0) for bad in ("400", "422")) == num_calls, path


class Asked(RuntimeError):
    """FastAPI was."""


async def fastapi(scope: Scope, receive: Receive, send: Send) -> None:
    raise Asked


def is_direct(module: Routes, path: str = "/x", method: str = "POST") -> bool:
    """Whether a request goes to the route's function without FastAPI."""
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "headers": []}
    scope |= {"query_string": b"", "state": {}, "app": FastAPI()}
    scope["app"].state.server = Server(read_settings(_env_file=None))
    scope["app"].state.keys = []
    try:
        asyncio.run(Dispatcher(fastapi, Table([module]))(scope, receive, send))
    except Asked:
        return False
    assert sent[0]["status"] == 204
    return True


async def plain(request: Request) -> Response:
    return Response(status_code=204)


async def of_path(request: Request, name: str) -> Response:
    return Response(status_code=204)


async def of_body(request: Request, body: dict[str, Any]) -> Response:
    return Response(status_code=204)


async def with_default(request: Request, top_n: int = 3) -> Response:
    return Response(status_code=204)


def dependency() -> int:
    return 1


async def depends(request: Request, one: Annotated[int, Depends(dependency)]) -> Response:
    return Response(status_code=204)


async def takes_nothing() -> Response:
    return Response(status_code=204)


async def gives_a_dict(request: Request) -> dict[str, int]:
    return {}


class Nothing(BaseModel):
    """A body of no field."""


def routed(function: Callable[..., Any], path: str = "/x") -> Routes:
    module = Routes("Test", "ollama")
    module.post(
        path, summary="", takes=Nothing, examples={}, gives=None, example=None, computes=False
    )(function)
    return module


def test_what_takes_the_request_alone_and_gives_a_response_is_direct() -> None:
    assert is_direct(routed(plain))
    assert not is_direct(routed(plain), method="GET")
    assert not is_direct(routed(plain), "/x/")
    assert not is_direct(routed(plain), "/X")


@pytest.mark.parametrize(
    "function", [of_body, with_default, depends, takes_nothing, gives_a_dict, of_path]
)
def test_what_fastapi_must_prepare_is_not_direct(function: Callable[..., Any]) -> None:
    assert not is_direct(routed(function))


def test_a_path_parameter_is_not_direct() -> None:
    for path in ("/x/a", "/x/{name}"):
        assert not is_direct(routed(of_path, "/x/{name}"), path)
