"""What every answer carries and every request costs: ids, total time, its log line, its counts.

Plain ASGI, so that streaming, disconnects and errors pass through untouched.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.access import with_cors
from api.http.errors import answer
from api.http.routes import route_path
from serving.errors import CallerGone, NotReady
from serving.metrics import SECONDS, Metrics
from serving.server import Server

log = logging.getLogger("embedding.access")

_SAFE_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_MAX_LOGGED_PATH = 200
_PROBES = frozenset({"/health", "/live", "/ready", "/metrics"})  # asked every few seconds
_LEFT = 499  # the status that is logged and counted when the client did not wait for one


class Exchanges:
    """The requests that are being answered, and counts of those that were."""

    def __init__(self, metrics: Metrics) -> None:
        self.open: set[asyncio.Task[Any]] = set()
        self.unanswered: set[asyncio.Task[Any]] = set()  # those of them without a first byte
        self.num_answered = 0
        self._metrics = metrics
        self._requests = metrics.counter("requests", "Requests answered", "route", "status")
        self._seconds = metrics.histogram(
            "request_seconds", "A request's head to its answer's end", SECONDS, "route"
        )
        gauge = metrics.gauge("open_requests", "Requests being answered")
        gauge.set_function(lambda: len(self.open))

    def count(self, route: str, status: int, seconds: float) -> None:
        """`route` is a template, never a path that a client made up. After the answer is sent."""
        self.num_answered += 1
        self._metrics.enter_waiting()
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class RequestFrame:
    """Adds `x-request-id` (the client's own, if it is harmless) and `x-total-time` in ms."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._with_cors: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope["app"].state
        exchanges: Exchanges = state.exchanges
        task = asyncio.current_task()
        assert task is not None
        exchange = _Exchange(scope, send, task, exchanges.unanswered)
        exchanges.open.add(task)
        exchanges.unanswered.add(task)
        try:
            if self._with_cors is None:  # which origins may call is known once the app has started
                self._with_cors = with_cors(self._app, state.server.settings.allowed_origins)
            await self._with_cors(scope, receive, exchange.send)
        except (CallerGone, ClientDisconnect):
            pass  # nobody is there to be answered
        except asyncio.CancelledError:
            reason = state.server.unready_because
            if exchange.status is not None or not reason:
                raise
            error = NotReady(reason, 5)  # given up while draining
            await answer(error, scope)(scope, receive, exchange.send)
        except Exception as error:
            if exchange.status is not None:
                raise
            await answer(error, scope)(scope, receive, exchange.send)
        finally:
            exchanges.unanswered.discard(task)
            exchanges.open.discard(task)
            exchange.record(state.server, exchanges)


class _Exchange:
    """One request and what has become known of its answer."""

    def __init__(
        self, scope: Scope, send: Send, task: asyncio.Task[Any], unanswered: set[asyncio.Task[Any]]
    ) -> None:
        self._task, self._unanswered = task, unanswered
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
            self._unanswered.discard(self._task)
            headers = self._headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers["x-total-time"] = f"{(time.perf_counter() - self._start) * 1e3:.2f}"
        await self._send(message)

    def record(self, server: Server, exchanges: Exchanges) -> None:
        """Count it, and log it unless it is a probe."""
        status = _LEFT if self.status is None else self.status
        seconds = time.perf_counter() - self._start
        # The template, so that what clients make up is one label.
        exchanges.count(getattr(self._scope.get("route"), "path", "other"), status, seconds)
        path = route_path(self._scope)
        level = logging.DEBUG if path in _PROBES else logging.INFO
        if not server.state.settings.access_log or not log.isEnabledFor(level):
            return
        fields = self._fields(path, status, seconds)
        text = " ".join(f"{name}={value}" for name, value in fields.items())
        log.log(level, "%s", text, extra={"fields": fields})

    def _fields(self, path: str, status: int, seconds: float) -> dict[str, Any]:
        """Of the log line. Neither the query string nor a body: they may hold a user's text."""
        client = self._scope.get("client") or ("-", 0)
        headers = MutableHeaders() if self._headers is None else self._headers
        fields: dict[str, Any] = {
            "method": self._scope["method"],
            "path": path[:_MAX_LOGGED_PATH].encode("unicode_escape").decode(),
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
