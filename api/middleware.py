"""What every answer carries and every request costs: ids, total time, the count of open ones.

Plain ASGI, so that streaming, disconnects and errors pass through untouched.
"""

from __future__ import annotations

import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import answer
from api.leaving import ClientLeft
from api.service import Service

_SAFE_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)


class RequestFrame:
    """Adds `x-request-id` (the client's own, if it is harmless) and `x-total-time` in ms."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = Headers(scope=scope).get("x-request-id", "")
        if not _SAFE_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        started = False

        async def send_framed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-total-time"] = f"{(time.perf_counter() - start) * 1e3:.2f}"
            await send(message)

        self._service.num_requests += 1
        try:
            await self._app(scope, receive, send_framed)
        except (ClientLeft, ClientDisconnect):
            pass  # nobody is there to be answered
        except Exception as error:
            if started:
                raise
            await answer(error, request_id, scope["path"])(scope, receive, send_framed)
        finally:
            self._service.num_requests -= 1
