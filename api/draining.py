"""SIGTERM, decently: refuse new requests, finish those that run, exit with 0.

Owns the process's signal handlers while uvicorn serves. Must not know models or dialects.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from types import FrameType

import uvicorn

from api.service import Service

log = logging.getLogger("embedding")


def drain_on_signals(service: Service) -> None:
    """SIGTERM or SIGINT: refuse new requests, let running ones finish, then stop uvicorn with 0.

    uvicorn by itself would raise the signal again after its shutdown and die of it. Without
    uvicorn's own handler in place (another server, a test) nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    uvicorns = signal.getsignal(signal.SIGTERM)
    server = getattr(uvicorns, "__self__", None)
    if not callable(uvicorns) or not isinstance(server, uvicorn.Server):
        return
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


async def _drain(service: Service, server: uvicorn.Server) -> None:
    timeout_s = service.settings.drain_timeout_s if service.settings else 0.0
    log.info("draining %d requests, at most %g s", service.num_requests, timeout_s)
    service.drain()
    deadline = time.monotonic() + timeout_s
    while service.num_requests and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    if service.lane is not None:
        await asyncio.to_thread(service.lane.stop, 0.0)
    server.config.timeout_graceful_shutdown = 5  # for clients that do not read their answers
    server.should_exit = True
