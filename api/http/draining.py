"""SIGTERM, decently: refuse new requests, finish those that run, exit with 0.

Owns the process's signal handlers while uvicorn serves. Must not know models or dialects.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from api.http.frame import Exchanges
from serving.server import Server
from serving.state import Serving

log = logging.getLogger("embedding")

_ANSWER_S = 3.0  # for rows that are there to become an answer


def drain_on_signals(app: FastAPI) -> Callable[[int], None]:
    """SIGTERM or SIGINT: refuse new requests, let running ones finish, then stop uvicorn with 0.

    uvicorn by itself would raise the signal again after its shutdown and die of it. Returns what
    stops the server at once with another exit code. Without uvicorn's own signal handlers in place
    (another server, a test) none is changed.
    """
    loop = asyncio.get_running_loop()
    found = uvicorn_of_process()
    if found is None:
        return lambda code: _stop_another_server(loop, code)
    uvicorn_server, uvicorns = found
    drains: list[asyncio.Task[None]] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if drains:
            uvicorns(number, frame)  # asked twice: at once
            return
        loop.call_soon_threadsafe(begin)

    def begin() -> None:
        drains.append(asyncio.create_task(_drain(app, uvicorn_server)))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return lambda code: _stop(uvicorn_server, code)


_Handler = Callable[[int, FrameType | None], object]


def uvicorn_of_process() -> tuple[uvicorn.Server, _Handler] | None:
    """The server that handles this process's signals, and its handler."""
    if threading.current_thread() is not threading.main_thread():
        return None
    handler = signal.getsignal(signal.SIGTERM)
    server = getattr(handler, "__self__", None)
    if not callable(handler) or not isinstance(server, uvicorn.Server):
        return None
    return server, handler


async def _drain(app: FastAPI, uvicorn_server: uvicorn.Server) -> None:
    server: Server = app.state.server
    exchanges: Exchanges = app.state.exchanges
    timeout_s = server.settings.drain_timeout_s
    log.info("draining %d requests, at most %g s", len(exchanges.open), timeout_s)
    server.drain()
    await _ended(exchanges.open, timeout_s)
    if isinstance(server.state, Serving):
        await asyncio.to_thread(server.state.worker.stop, 0.0)
    # Those whose jobs have just failed get their answer; whoever waits for something else, a model
    # or the rest of a body, is cancelled, and told the same (api/http/frame.py).
    await _ended(exchanges.unanswered, _ANSWER_S)
    for task in list(exchanges.unanswered):
        task.cancel()
    await _ended(exchanges.unanswered, _ANSWER_S)
    _stop(uvicorn_server, 0)


async def _ended(tasks: set[asyncio.Task[Any]], timeout_s: float) -> None:
    """Until all of these are gone, and those that come meanwhile, or the time is over."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + timeout_s
    while tasks and (left_s := ends_at - loop.time()) > 0:
        await asyncio.wait(list(tasks), timeout=left_s)


def _stop(server: uvicorn.Server, code: int) -> None:
    """Let uvicorn shut down, then end the process with `code`.

    Python's own way out kills threads that are still inside torch, an abandoned batch or a model
    that loads, and C++ then aborts the process (exit code -6).
    """
    atexit.register(os._exit, code)
    server.config.timeout_graceful_shutdown = 5  # for clients that do not read their answers
    server.should_exit = True


def _stop_another_server(loop: asyncio.AbstractEventLoop, code: int) -> None:
    loop.call_soon(sys.exit, code)
