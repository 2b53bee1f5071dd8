"""A lean HTTP/1.1 client for load tests: kept connections, prepared bytes, no pool to search.

A usual client spends more on a request than the server does on refusing it, and with hundreds of
open ones its pool takes seconds: then it measures itself. Answers must have a content-length. To
cancel a request is to leave.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """What came back, and the milliseconds that it took; to connect, if need be, is part of it."""

    status: int
    headers: dict[str, str]
    body: bytes
    taken_ms: float

    def json(self) -> Any:
        return json.loads(self.body)


_KEPT_S = 3.0  # uvicorn closes an idle connection after 5

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class RawClient:
    """Of one server. A request takes a connection that is free, or opens one."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self._host, self._port = parts.hostname, parts.port
        self._free: list[tuple[_Connection, float]] = []  # and since when

    async def post(self, path: str, body: Any) -> RawAnswer:
        return await self._ask("POST", path, json.dumps(body).encode())

    async def get(self, path: str) -> RawAnswer:
        return await self._ask("GET", path, b"")

    async def _ask(self, method: str, path: str, content: bytes) -> RawAnswer:
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n"
        kind = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        start = time.perf_counter()
        reader, writer = self._take_free() or await self._open()
        try:
            writer.write((head + kind).encode() + content)
            status, headers = _read_head(await reader.readuntil(b"\r\n\r\n"))
            body = await reader.readexactly(int(headers["content-length"]))
        except BaseException:  # who leaves before the answer closes the connection
            writer.close()
            raise
        taken_ms = (time.perf_counter() - start) * 1e3
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._free.append(((reader, writer), time.perf_counter()))
        return RawAnswer(status, headers, body, taken_ms)

    def _take_free(self) -> _Connection | None:
        """The one that was used last, unless the server may be about to close it."""
        if self._free and time.perf_counter() - self._free[-1][1] < _KEPT_S:
            return self._free.pop()[0]
        for (_, writer), _ in self._free:
            writer.close()
        self._free.clear()
        return None

    async def _open(self) -> _Connection:
        return await asyncio.open_connection(self._host, self._port)

    async def close(self) -> None:
        for (_, writer), _ in self._free:
            writer.close()
        self._free.clear()


def _read_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip().split("\r\n")
    fields = (line.partition(":") for line in lines)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in fields}
