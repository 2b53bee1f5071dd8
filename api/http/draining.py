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
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from serving.server import Service

log = logging.getLogger("embedding")

_ANSWER_S = 3.0  # for rows that are there to become an answer


def drain_on_signals(service: Service) -> Callable[[int], None]:
    """SIGTERM or SIGINT: refuse new requests, let running ones finish, then stop uvicorn with 0.

    uvicorn by itself would raise the signal again after its shutdown and die of it. Returns what
    stops the server at once with another exit code. Without uvicorn's own signal handlers in place
    (another server, a test) none is changed.
    """
    loop = asyncio.get_running_loop()
    found = _uvicorn()
    if found is None:
        return lambda code: _stop_another_server(loop, code)
    server, uvicorns = found
    drains: list[asyncio.Task[None]] = []

    def begin() -> None:
        drains.append(asyncio.create_task(_drain(service, server)))

    def handle(number: int, frame: FrameType | None) -> None:
        if service.state == "draining":
            uvicorns(number, frame)  # asked twice: at once
            return
        loop.call_soon_threadsafe(begin)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    return lambda code: _stop(server, code)


_Handler = Callable[[int, FrameType | None], object]


def _uvicorn() -> tuple[uvicorn.Server, _Handler] | None:
    """The server that handles this process's signals, and its handler."""
    if threading.current_thread() is not threading.main_thread():
        return None
    handler = signal.getsignal(signal.SIGTERM)
    server = getattr(handler, "__self__", None)
    if not callable(handler) or not isinstance(server, uvicorn.Server):
        return None
    return server, handler


async def _drain(service: Service, server: uvicorn.Server) -> None:
    timeout_s = service.settings.drain_timeout_s if service.settings else 0.0
    log.info("draining %d requests, at most %g s", service.num_requests, timeout_s)
    service.drain()
    deadline = time.monotonic() + timeout_s
    while service.num_requests and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    if service.lane is not None:
        await asyncio.to_thread(service.lane.stop, 0.0)
    await _give_up(service)
    _stop(server, 0)


async def _give_up(service: Service) -> None:
    """Those whose jobs the lane has just failed get their answer; whoever waits for something else,
    a model or the rest of a body, is cancelled, and told the same (api/http/frame.py)."""
    deadline = time.monotonic() + _ANSWER_S
    while service.unanswered and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    for task in list(service.unanswered):
        task.cancel()
    while service.unanswered and time.monotonic() < deadline + _ANSWER_S:
        await asyncio.sleep(0.02)


def _stop(server: uvicorn.Server, code: int) -> None:
    """Let uvicorn shut down, then end the process with `code`.

    Python's own way out kills threads that are still inside torch, an abandoned step or a model
    that loads, and C++ then aborts the process (exit code -6).
    """
    atexit.register(os._exit, code)
    server.config.timeout_graceful_shutdown = 5  # for clients that do not read their answers
    server.should_exit = True


def _stop_another_server(loop: asyncio.AbstractEventLoop, code: int) -> None:
    loop.call_soon(sys.exit, code)
