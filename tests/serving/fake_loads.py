"""Models that load as a test says, on a loop whose time a test moves. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from engine.folder.store import ModelFolder
from serving.models.residents import Residents

PATIENCE_S = 20.0  # reached only by a test that fails
KEEP_S, LOAD_TIMEOUT_S, BYTES = 300.0, 60.0, 10**9


class Weights:
    """What a load gives; tests watch it die."""


class Engine:
    """Loads at once unless `gate` is closed; `faults` by name are raised instead."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gate = threading.Event()
        self.gate.set()
        self.started: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.released: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.faults: dict[str, Callable[[], BaseException]] = {}
        self.weights: weakref.WeakSet[Weights] = weakref.WeakSet()
        self.loads: list[str] = []

    def folder(self, name: str) -> ModelFolder:
        path = self.root / name
        path.mkdir(exist_ok=True)
        (path / "config.json").touch()
        return ModelFolder(name, path)

    def load(self, folder: ModelFolder) -> Weights:
        self.loads.append(folder.name)
        self.started.put(folder.name)
        assert self.gate.wait(PATIENCE_S)
        weights = Weights()
        self.weights.add(weights)
        if fault := self.faults.get(folder.name):
            raise fault()
        return weights

    def residents(self, max_bytes: int | None = 2 * BYTES, **options: Any) -> Residents:
        """Room for two models, by the setting or by what is available."""
        return Residents(
            load=self.load,
            measure=options.get("measure", lambda folder: BYTES),
            release=lambda: self.released.put(len(self.weights)),
            available=lambda: 2 * BYTES - len(self.weights) * BYTES,
            max_bytes=max_bytes,
            keep_alive_s=options.get("keep_alive_s", KEEP_S),
            load_timeout_s=LOAD_TIMEOUT_S,
        )

    async def next_load(self) -> str:
        """The model that is being loaded now; the loop goes on meanwhile."""
        return await asyncio.to_thread(self.started.get, timeout=PATIENCE_S)

    async def next_release(self) -> int:
        """How many models were alive when memory was given back."""
        return await asyncio.to_thread(self.released.get, timeout=PATIENCE_S)


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        asyncio.run(test(*args, **fixtures))

    return run


async def advance(seconds: float) -> None:
    """Move the running loop's time; what is due then has run when this returns."""
    loop = asyncio.get_running_loop()
    vars(loop)["time"] = lambda before=loop.time: before() + seconds
    for _ in range(5):
        await asyncio.sleep(0)


async def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


def names(residents: Residents) -> str:
    return " ".join(resident.name for resident in residents.resident())


async def use(residents: Residents, folder: ModelFolder, keep_alive_s: float | None = None) -> None:
    async with residents.lease(folder, keep_alive_s) as resident:
        assert isinstance(resident.model, Weights)


@contextlib.asynccontextmanager
async def waiting(*users: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks that run beside the block and are cancelled at its end."""
    tasks = [asyncio.create_task(user) for user in users]
    await asyncio.sleep(0)
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
