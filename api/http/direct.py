"""The short way to a route's function, for those that read the request and write the answer
themselves: they need FastAPI for their documentation only, and its way there takes longer than all
that we do (bench/http_overhead.py). Every other request goes on to FastAPI.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.dialects import route_path
from api.http.errors import answer
from api.http.leaving import ClientLeft


@dataclass(frozen=True, slots=True)
class _Direct:
    """`path` is what the counts are kept by."""

    path: str
    function: Callable[[Request], Awaitable[Response]]


class DirectRoutes:
    """Plain ASGI. Methods and paths that are not exactly a direct route's pass through."""

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter]) -> None:
        self._app = app
        self._routes = {
            (method, route.path): _Direct(route.path, route.endpoint)
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute) and _is_direct(route)
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = self._routes.get((scope["method"], route_path(scope)))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        try:
            response = await route.function(Request(scope, receive, send))
        except (ClientLeft, ClientDisconnect):
            raise
        except Exception as error:
            response = answer(error, scope)
        await response(scope, receive, send)


def _is_direct(route: APIRoute) -> bool:
    """Takes the request and nothing else, and gives a Response that needs no making."""
    if route.dependencies or route.dependant.dependencies or route.param_convertors:
        return False
    if not inspect.iscoroutinefunction(route.endpoint):
        return False
    signature: Any = inspect.signature(route.endpoint, eval_str=True)
    (*parameters,) = signature.parameters.values()
    takes = [parameter.annotation for parameter in parameters]
    gives = signature.return_annotation
    return takes == [Request] and isinstance(gives, type) and issubclass(gives, Response)
