"""Routes with their facts, told once, where each is written; and the way of a request to its route.

A route says its path, its errors' dialect, whether it computes (then the request is admitted
before its body is read) and whether it is open without a key.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http import access
from api.http.errors import Dialect, answer, error_responses
from serving.errors import CallerGone, InvalidRequest
from serving.server import Server

_TIMEOUT = "x-request-timeout"
_MAX_TIMEOUT_S = 86_400.0

Function = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """`path` is the template that counts are kept by. `is_direct`: takes the request and nothing
    else, and gives a Response, so that FastAPI need not be asked."""

    method: str
    path: str
    dialect: Dialect
    computes: bool
    is_open: bool
    function: Function
    is_direct: bool


class Routes:
    """The routes of one module. `router` is what FastAPI makes its documentation of."""

    def __init__(self, tag: str, dialect: Dialect) -> None:
        self.router = APIRouter(tags=[tag])
        self.dialect = dialect
        self.by_method: dict[tuple[str, str], Route] = {}

    def post(
        self,
        *paths: str,
        summary: str,
        takes: type[BaseModel],
        examples: dict[str, Any],
        gives: Any,
        example: Any,
        computes: bool = True,
        openai: Sequence[str] = (),
    ) -> Callable[[Function], Function]:
        """A POST whose body is JSON whatever its content type. The first path is documented, the
        others are other names of it; errors of those in `openai` are in OpenAI's dialect."""
        content = {
            "schema": _inlined(takes),
            "examples": {name: {"value": value} for name, value in examples.items()},
        }
        body = {"required": True, "content": {"application/json": content}}
        return self._add(
            "POST",
            (*paths, *openai),
            openai=openai,
            computes=computes,
            summary=summary,
            responses=self._responses(gives, example),
            openapi_extra={"requestBody": body},
        )

    def get(self, *paths: str, gives: Any, example: Any, **more: Any) -> Callable[[Function], Any]:
        """A GET of an object that FastAPI writes as `gives`. `more` is as in `look`."""
        return self.look(*paths, responses=self._responses(gives, example), **more)

    def look(
        self, *paths: str, is_open: bool = False, head: bool = False, **documentation: Any
    ) -> Callable[[Function], Function]:
        """Any other GET, with FastAPI's own words for its documentation; `head`: HEAD as well."""

        def add(function: Function) -> Function:
            self._add("GET", paths, is_open=is_open, **documentation)(function)
            if head:
                self._add("HEAD", paths, is_open=is_open, include_in_schema=False)(function)
            return function

        return add

    def _responses(self, gives: Any, example: Any) -> dict[int | str, dict[str, Any]]:
        success: dict[str, Any] = {"content": {"application/json": {"example": example}}}
        return {200: {**success, "model": gives}, **error_responses(self.dialect)}

    def _add(
        self,
        method: str,
        paths: Iterable[str],
        *,
        openai: Sequence[str] = (),
        computes: bool = False,
        is_open: bool = False,
        include_in_schema: bool = True,
        **documentation: Any,
    ) -> Callable[[Function], Function]:
        def add(function: Function) -> Function:
            for index, path in enumerate(paths):
                self.router.add_api_route(
                    path,
                    function,
                    methods=[method],
                    include_in_schema=include_in_schema and not index,
                    **documentation,
                )
                dialect: Dialect = "openai" if path in openai else self.dialect
                self.by_method[method, path] = Route(
                    method, path, dialect, computes, is_open, function, _is_direct(function)
                )
            return function

        return add


class Table:
    """All routes of an app, found by method and path, or by path alone."""

    def __init__(self, modules: Iterable[Routes]) -> None:
        self._exact: dict[tuple[str, str], Route] = {}
        self._templates: list[tuple[re.Pattern[str], Route]] = []
        self._by_path: dict[str, Route] = {}
        self._by_folder: dict[str, Dialect] = {}
        for routes in modules:
            for (method, path), route in routes.by_method.items():
                if "{" in path:
                    self._templates.append((compile_path(path)[0], route))
                self._exact[method, path] = route
                self._by_path.setdefault(path, route)
                folder, _, rest = path[1:].partition("/")
                if rest:
                    self._by_folder.setdefault(folder, route.dialect)

    def find(self, method: str, path: str) -> Route | None:
        """The route, or for another method that of the same path; None for an unknown path."""
        route = self._exact.get((method, path)) or self._by_path.get(path)
        if route is not None:
            return route
        return next((route for regex, route in self._templates if regex.match(path)), None)

    def dialect_of_unknown(self, path: str) -> Dialect:
        """That of the routes below the same folder, else Ollama's, the plainest."""
        return self._by_folder.get(path[1:].partition("/")[0], "ollama")


class Dispatcher:
    """Key, admission, and the short way to a route's function. Plain ASGI.

    FastAPI's own way to a function takes longer than all that we do (bench/http_overhead.py), so
    only what needs its parameters or its writing goes on to it.
    """

    def __init__(self, app: ASGIApp, table: Table) -> None:
        self._app = app
        self._table = table

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = route_path(scope)
        route = self._table.find(scope["method"], path)
        scope["state"]["dialect"] = (
            self._table.dialect_of_unknown(path) if route is None else route.dialect
        )
        with contextlib.ExitStack() as admitted:
            try:
                self._let_in(scope, receive, route, admitted)
                response = None
            except Exception as error:
                response = answer(error, scope)
            if response is not None:
                await response(scope, receive, send)
            elif route is not None and self._is_direct(scope, route):
                await _call(route, scope, receive, send)
            else:
                await self._app(scope, receive, send)

    def _let_in(
        self, scope: Scope, receive: Receive, route: Route | None, admitted: contextlib.ExitStack
    ) -> None:
        """Check the key, and admit what computes. Raises what the client is to be told."""
        keys: Sequence[str] = scope["app"].state.keys
        if keys and not (route.is_open if route else access.is_documentation(route_path(scope))):
            access.check_key(Headers(scope=scope).get("authorization", ""), keys)
        if route is not None and route.computes and scope["method"] == route.method:
            scope["route"] = route  # what a refusal is counted by
            server: Server = scope["app"].state.server
            call = server.state.admit(_timeout_s(scope), _TIMEOUT, _gone(receive))
            scope["state"]["call"] = admitted.enter_context(call)

    def _is_direct(self, scope: Scope, route: Route) -> bool:
        return route.is_direct and route.method == scope["method"] and "{" not in route.path


async def _call(route: Route, scope: Scope, receive: Receive, send: Send) -> None:
    scope["route"] = route
    try:
        response = await route.function(Request(scope, receive, send))
    except (CallerGone, ClientDisconnect):
        raise
    except Exception as error:
        response = answer(error, scope)
    await response(scope, receive, send)


def route_path(scope: Scope) -> str:
    """The path below where the app is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def _gone(receive: Receive) -> Callable[[], Awaitable[None]]:
    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    return gone


def _timeout_s(scope: Scope) -> float | None:
    """Raises InvalidRequest for a header that is not a number of seconds."""
    sent = next((value for name, value in scope["headers"] if name == _TIMEOUT.encode()), None)
    if sent is None:
        return None
    text = sent.decode("latin-1")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MAX_TIMEOUT_S or "_" in text:
        shown = text[:40].encode("unicode_escape").decode()
        raise InvalidRequest(
            f"{_TIMEOUT} must be seconds, above 0 and at most {_MAX_TIMEOUT_S:.0f}, not '{shown}'"
        )
    return seconds


def _is_direct(function: Function) -> bool:
    signature: Any = inspect.signature(function, eval_str=True)
    takes = [parameter.annotation for parameter in signature.parameters.values()]
    gives = signature.return_annotation
    return takes == [Request] and isinstance(gives, type) and issubclass(gives, Response)


def _inlined(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema without `$ref`: an entry of its own has no place for definitions."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if name := node.get("$ref"):
            own = {key: value for key, value in node.items() if key != "$ref"}
            return resolve({**definitions[name.rpartition("/")[2]], **own})
        return {key: resolve(value) for key, value in node.items()}

    resolved: dict[str, Any] = resolve(schema)
    return resolved
