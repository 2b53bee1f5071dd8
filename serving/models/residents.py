"""Which models are in memory: loaded at first use, one at a time, dropped when idle or for room.

Owns every Resident from its first request to its unloading, on one event loop. Must not know torch,
workers or files: what blocks is the Loader's. Invariant: what has users is never unloaded, and once
a model is unloaded nothing here refers to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from engine.errors import ModelError
from engine.memory import format_bytes
from engine.folder.store import ModelFolder
from serving.models.loads import Loader, LoadFailed, on_daemon_thread
from serving.models.resident import Fault, LoadTimeout, NoRoom, Resident

log = logging.getLogger("embedding.residents")

_LONGEST_S = 10 * 365 * 86_400.0  # a longer keep_alive is for ever; no timer overflows below it


class Residents:
    """`load`, `measure` and `release` block. `available` counts when `max_bytes` is None."""

    def __init__(
        self,
        *,
        load: Callable[[ModelFolder], Any],
        measure: Callable[[ModelFolder], int],
        release: Callable[[], None],
        available: Callable[[], int],
        max_bytes: int | None,
        keep_alive_s: float,
        load_timeout_s: float,
    ) -> None:
        self._loader = Loader(load, measure, release)
        self._available, self._max_bytes = available, max_bytes
        self._keep_alive_s, self._load_timeout_s = keep_alive_s, load_timeout_s
        self._residents: dict[str, Resident] = {}  # least recently used first
        self._loading: dict[str, Resident] = {}
        self._one_load = asyncio.Lock()
        self._user_left = asyncio.Event()

    def resident(self) -> list[Resident]:
        """Models in memory, least recently used first."""
        return list(self._residents.values())

    def loading(self) -> list[Resident]:
        """Models on their way, the first come first."""
        return list(self._loading.values())

    def get(self, name: str) -> Resident | None:
        return self._residents.get(name)

    @property
    def failures(self) -> dict[str, str]:
        """Why what was tried cannot be served, in words for callers, by name."""
        return self._loader.failures

    async def pin(self, folder: ModelFolder) -> Resident:
        """Load for good, however long it takes. Raises ModelError or NoRoom."""
        resident = self._enter(folder)
        resident.pinned = True
        try:
            await self._wait(resident, None)
        except LoadFailed as failure:
            raise ModelError(failure.reason) from None
        finally:
            self._leave(resident)
        return resident

    @contextlib.asynccontextmanager
    async def lease(
        self, folder: ModelFolder, keep_alive_s: float | None = None
    ) -> AsyncIterator[Resident]:
        """Use a model; it is loaded if need be and stays until the block ends.

        `keep_alive_s` replaces the last lease's: seconds after the last use, 0 unloads at once,
        negative is for ever, None leaves what was last asked for, at first the setting (so does
        Ollama). Raises LoadFailed, LoadTimeout or NoRoom.
        """
        resident = self._enter(folder)
        if keep_alive_s is not None:
            resident.keep_alive_s = keep_alive_s
        try:
            await self._wait(resident, self._load_timeout_s)
            yield resident
        finally:
            self._leave(resident)

    async def unload(self, name: str) -> bool:
        """Unload now, or when the last user leaves. False for what is pinned or not there."""
        resident = self._residents.get(name) or self._loading.get(name)
        if resident is None or resident.pinned:
            return False
        resident.keep_alive_s = 0.0
        if not resident.num_users and resident.model is not None:
            self._drop(resident, "asked to")
        await self._loader.freed()
        return True

    async def close(self) -> None:
        """Stop timers and loads. What is in memory stays: a batch may still run."""
        for resident in self._residents.values():
            resident.stop_timer()
        tasks = [r.loading for r in self._loading.values() if r.loading is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _enter(self, folder: ModelFolder) -> Resident:
        resident = self._residents.get(folder.name) or self._loading.get(folder.name)
        if resident is None:
            resident = Resident(folder.name, folder, keep_alive_s=self._keep_alive_s)
            self._loading[folder.name] = resident
            resident.loading = asyncio.create_task(self._bring_in(resident))
        resident.num_users += 1
        if resident.timer is not None:
            resident.stop_timer()
        return resident

    async def _wait(self, resident: Resident, timeout_s: float | None) -> None:
        """Until it is loaded. A waiter that is cancelled leaves the load alone."""
        task = resident.loading
        assert task is not None
        if not task.done():
            await asyncio.wait([task], timeout=timeout_s)
        if not task.done():
            by = resident.held_up_by
            why = f": it waits for memory that is in use by {by}" if by else ""
            raise LoadTimeout(f"model {resident.name!r} is still loading{why}")
        if task.cancelled():
            raise LoadFailed(resident.folder, "the server is shutting down")
        if fault := task.result():
            raise fault()

    def _leave(self, resident: Resident) -> None:
        if resident.num_users == 1 and resident.num_running:
            # Its caller has left, the batch has not ended: the memory is not free yet.
            self._leave_at_rest(resident)
            return
        resident.num_users -= 1
        if not resident.num_users and resident.model is not None:
            self._rest(resident)
        self._user_left.set()

    def _leave_at_rest(self, resident: Resident) -> None:
        """Once: whichever comes first, the worker that looks for `on_rest` or this second look."""
        loop = asyncio.get_running_loop()

        def leave() -> None:
            if resident.on_rest is on_rest:
                resident.on_rest = None
                self._leave(resident)

        def on_rest() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(leave)

        resident.on_rest = on_rest
        if not resident.num_running:
            on_rest()

    def _rest(self, resident: Resident) -> None:
        """Nobody uses it any more: it was the last one used, and its time runs."""
        self._residents[resident.name] = self._residents.pop(resident.name)
        keep_alive_s = resident.keep_alive_s
        if resident.pinned:
            return
        if keep_alive_s == 0:
            self._drop(resident, "asked to")
        elif 0 < keep_alive_s <= _LONGEST_S:
            loop = asyncio.get_running_loop()
            resident.expires_at = loop.time() + keep_alive_s
            because = f"idle for {keep_alive_s:.10g} s"
            resident.timer = loop.call_at(resident.expires_at, self._drop, resident, because)

    def _drop(self, resident: Resident, because: str) -> None:
        del self._residents[resident.name]
        resident.stop_timer()
        dropped, resident.model = [resident.model], None
        log.info("model %s unloaded: %s", resident.name, because)
        self._loader.free(dropped)

    async def _bring_in(self, resident: Resident) -> Fault | None:
        """Load, or what each waiter is to raise; raises nothing: perhaps nobody waits any more."""
        folder = resident.folder
        try:
            resident.num_bytes = await self._loader.measure(folder)
            async with self._one_load:
                await self._make_room(resident)
                await self._load_now(resident)
        except LoadFailed as failure:
            if failure.is_news:
                self._loader.free([])  # what was read before it failed
            if failure.is_news and not resident.pinned:  # who pins reports it
                log.warning("model %s cannot be served: %s", resident.name, failure.reason)
            return partial(LoadFailed, folder, failure.reason)
        except (NoRoom, LoadTimeout) as error:
            return partial(type(error), str(error))
        finally:
            del self._loading[resident.name]
        return None

    async def _load_now(self, resident: Resident) -> None:
        name = resident.name
        started = time.perf_counter()
        resident.model = await self._loader.load(resident.folder)
        resident.load_s = time.perf_counter() - started
        resident.loaded_at = time.time()
        self._residents[name] = resident
        size = format_bytes(resident.num_bytes)
        log.info("model %s loaded in %.1f s (%s)", name, resident.load_s, size)
        if not resident.num_users:
            self._rest(resident)

    async def _make_room(self, resident: Resident) -> None:
        """Unload until it fits, waiting for busy models while somebody waits for this one."""
        while resident.num_bytes > (free := await self._free_bytes()):
            loose = [r for r in self._residents.values() if not r.pinned]
            idle = [r for r in loose if not r.num_users]
            if not loose or resident.num_bytes > free + sum(r.num_bytes for r in loose):
                no_room = self._no_room(resident, free)
                if resident.pinned and self._max_bytes is None:
                    log.warning("%s; trying all the same", no_room)  # a guess, and no one's limit
                    break
                raise NoRoom(no_room)
            if idle:
                self._drop(idle[0], f"to make room for {resident.name}")
            elif resident.num_users:
                resident.held_up_by = ", ".join(r.name for r in loose)
                self._user_left.clear()
                await self._user_left.wait()
            else:
                raise LoadTimeout("nobody waits for it any more")
        resident.held_up_by = ""

    async def _free_bytes(self) -> int:
        await self._loader.freed()
        if self._max_bytes is None:
            return await on_daemon_thread(self._available)
        return self._max_bytes - sum(r.num_bytes for r in self._residents.values())

    def _no_room(self, resident: Resident, free: int) -> str:
        there = [
            f"{r.name} ({format_bytes(r.num_bytes)}{', pinned' if r.pinned else ''})"
            for r in self._residents.values()
        ]
        limit = f"EMBEDDING_MAX_MODEL_BYTES={self._max_bytes}"
        if self._max_bytes is None:
            limit = f"{format_bytes(free)} is free (EMBEDDING_MAX_MODEL_BYTES is not set)"
        return (
            f"no room for model {resident.name!r}: it needs {resident.num_bytes} bytes "
            f"({format_bytes(resident.num_bytes)}), {limit}; "
            f"resident: {', '.join(there) or 'nothing'}"
        )
