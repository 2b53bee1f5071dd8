"""Bounds of a connection, before any of our code sees a request: the size of a head, the time it
may take, and how many connections there are.

It is uvicorn's own protocol with these limits; what a request means is not known here.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from limits import Limits

log = logging.getLogger("embedding")

_MAX_FIELDS = 200  # headers of one request
_LOG_EVERY_S = 10.0


def bounded(limits: Limits) -> type[HttpToolsProtocol]:
    """The protocol of one server's connections."""

    class Bounded(BoundedProtocol):
        bounds = limits
        last_log_s = float("-inf")

    return Bounded


class BoundedProtocol(HttpToolsProtocol):
    """Counts a head's bytes as they come, and ends what is too large or too slow."""

    bounds: Limits
    last_log_s: float

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_head = True
        self._num_bytes = 0  # of the head that comes
        self._num_seen = 0  # those of them that are parsed
        self._refusal: HTTPStatus | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.bounds.max_connections:
            self._tell_full()
            transport.abort()
            return
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:
            self._num_bytes += len(data)
            if self._timer is None:
                self._begin_head()
        super().data_received(data)
        # What the parser still holds of an unfinished head has not been seen below.
        if self._in_head and self._num_bytes > self.bounds.max_head_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._num_seen = True, 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._see(len(url), HTTPStatus.REQUEST_URI_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._see(len(name) + len(value), HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if len(self.headers) > _MAX_FIELDS:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        self._in_head, self._num_bytes = False, 0
        self._stop_timer()
        if self._refusal is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._refusal is None:
            super().on_message_complete()
            self._in_head = True

    def send_400_response(self, msg: str) -> None:
        if self._refusal is None:
            super().send_400_response(msg)

    def _should_upgrade(self) -> bool:
        return self._refusal is None and super()._should_upgrade()

    def _see(self, num_bytes: int, refusal: HTTPStatus) -> None:
        self._num_seen += num_bytes
        if self._num_seen > self.bounds.max_head_bytes:
            self._refuse(refusal)

    def _begin_head(self) -> None:
        self._timer = self.loop.call_later(self.bounds.head_timeout_s, self._time_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        if self._num_bytes:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()  # it has never said a word

    def _refuse(self, status: HTTPStatus) -> None:
        """Once. What comes after it is not parsed."""
        if self._refusal is not None:
            return
        self._refusal = status
        self._stop_timer()
        text = (
            f"the request's head is too large: the limit is {self.bounds.max_head_bytes} bytes "
            f"(max_head_bytes) and {_MAX_FIELDS} headers"
        )
        if status == HTTPStatus.REQUEST_TIMEOUT:
            text = f"the head was not there after {self.bounds.head_timeout_s:g} s (head_timeout_s)"
        body = f'{{"error":"{text}"}}'.encode()
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _tell_full(self) -> None:
        """In the log, now and then."""
        kind, now = type(self), self.loop.time()
        if now - kind.last_log_s >= _LOG_EVERY_S:
            kind.last_log_s = now
            log.warning(
                "connections are refused: %d are open (max_connections)",
                self.bounds.max_connections,
            )
