"""A client that leaves: what was being done for it stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import Request


class ClientLeft(Exception):
    """Nobody reads the answer any more."""


@contextlib.asynccontextmanager
async def cancelled_when_client_leaves(request: Request) -> AsyncIterator[None]:
    """Cancel the body of this block when the connection closes; then raise ClientLeft."""
    worker = asyncio.current_task()
    assert worker is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        worker.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if left:
            raise ClientLeft from None
        raise
    finally:
        watcher.cancel()
