"""What every answer carries and every request costs: ids, total time, its log line, its counts.

Plain ASGI, so that streaming, disconnects and errors pass through untouched.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.dialects import route_path
from api.http.errors import answer
from api.http.leaving import ClientLeft
from serving.server import Service

log = logging.getLogger("embedding.access")

_SAFE_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_MAX_LOGGED_PATH = 200
_PROBES = frozenset({"/health", "/live", "/ready", "/metrics"})  # asked every few seconds
_LEFT = 499  # the status that is logged and counted when the client did not wait for one


class RequestFrame:
    """Adds `x-request-id` (the client's own, if it is harmless) and `x-total-time` in ms."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None
        exchange = _Exchange(scope, send, on_start=partial(self._service.unanswered.discard, task))
        self._service.num_requests += 1
        self._service.unanswered.add(task)
        try:
            await self._app(scope, receive, exchange.send)
        except (ClientLeft, ClientDisconnect):
            pass  # nobody is there to be answered
        except asyncio.CancelledError:
            refusal = self._service.refusal
            if exchange.status is not None or refusal is None:
                raise
            await answer(refusal, scope)(scope, receive, exchange.send)  # given up while draining
        except Exception as error:
            if exchange.status is not None:
                raise
            await answer(error, scope)(scope, receive, exchange.send)
        finally:
            self._service.unanswered.discard(task)
            self._service.num_requests -= 1
            self._service.num_answered += 1
            self._record(exchange)

    def _record(self, exchange: _Exchange) -> None:
        status = _LEFT if exchange.status is None else exchange.status
        seconds = exchange.seconds()
        self._service.metrics.count_request(exchange.route, status, seconds)
        settings = self._service.settings
        level = logging.DEBUG if exchange.path in _PROBES else logging.INFO
        if settings is None or not settings.access_log or not log.isEnabledFor(level):
            return
        fields = exchange.fields(status, seconds)
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        log.log(level, "%s", text, extra={"fields": fields})


class _Exchange:
    """One request and what has become known of its answer."""

    def __init__(self, scope: Scope, send: Send, on_start: Callable[[], None]) -> None:
        self._on_start = on_start
        self._start = time.perf_counter()
        self._scope = scope
        self._send = send
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not _SAFE_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        self.request_id = request_id
        scope.setdefault("state", {})["request_id"] = request_id
        self.status: int | None = None
        self._headers: MutableHeaders | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._on_start()
            headers = self._headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers["x-total-time"] = f"{self.seconds() * 1e3:.2f}"
        await self._send(message)

    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @property
    def path(self) -> str:
        return route_path(self._scope)

    @property
    def route(self) -> str:
        """The template, so that what clients make up is one label."""
        return getattr(self._scope.get("route"), "path", "other")

    def fields(self, status: int, seconds: float) -> dict[str, Any]:
        """Of the log line. Neither the query string nor a body: they may hold a user's text."""
        client = self._scope.get("client") or ("-", 0)
        headers = MutableHeaders() if self._headers is None else self._headers
        fields: dict[str, Any] = {
            "method": self._scope["method"],
            "path": self.path[:_MAX_LOGGED_PATH].encode("unicode_escape").decode(),
            "status": status,
            "total_ms": round(seconds * 1e3, 2),
        }
        for field, header in _MEASURED.items():
            if header in headers:
                fields[field] = float(headers[header])
        return fields | {"client": client[0], "request_id": self.request_id}


_MEASURED = {
    "tokens": "x-compute-tokens",
    "tokenization_ms": "x-tokenization-time",
    "queue_ms": "x-queue-time",
    "inference_ms": "x-inference-time",
}
