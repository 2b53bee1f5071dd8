"""Where work comes in: each request that computes takes one of `max_queue_jobs` places before its
body is read, and keeps it until it is answered. Who gets none is told so at once, with 429.

Plain ASGI, behind the keys. What only looks is never kept waiting and never refused here.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.dialects import route_path
from api.http.errors import ApiError, answer
from batcher.admission import Overloaded, Place
from serving.deadline import HEADER, Deadline, read_deadline
from serving.server import Service

# All that leases a model: it computes, tokenizes or loads.
WORK = frozenset(
    {
        *("/v1/embeddings", "/embeddings", "/api/embed", "/api/embeddings"),
        *("/embed", "/embed_sparse", "/embed_all", "/similarity"),
        *("/rerank", "/v1/rerank", "/v2/rerank", "/api/rerank", "/score", "/v1/score"),
        *("/tokenize", "/v1/tokenize", "/decode", "/api/generate"),
    }
)


class Entrance:
    """Puts the request's `place` and `deadline` into its state, for `Service.lease`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope) if scope["type"] == "http" else ""
        if path not in WORK or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            place, deadline = self._enter(Headers(scope=scope).get(HEADER))
        except (ApiError, Overloaded) as refusal:
            scope["route"] = _Route(path)
            await answer(refusal, scope)(scope, receive, send)
            return
        scope["state"].update(place=place, deadline=deadline)
        with place:
            await self._app(scope, receive, send)

    def _enter(self, timeout: str | None) -> tuple[Place, Deadline | None]:
        settings = self._service.admit()
        deadline = read_deadline(timeout, settings.request_timeout_s)
        assert self._service.admission is not None
        return self._service.admission.enter(), deadline


@dataclass(frozen=True, slots=True)
class _Route:
    """What a refusal is counted by."""

    path: str
