"""The running server: from its settings to serving, the way in for a request, and the way out.

A Server is in one of two states, each a complete record: Starting with its reason, or Serving with
everything there. It knows neither HTTP nor torch, and belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from batcher.worker import Worker
from engine import memory
from engine.devices import DeviceError
from engine.errors import ModelError
from engine.folder.store import ModelFolder, default_models, find_models
from serving.errors import NotReady
from serving.gauges import Gauges
from serving.metrics import Metrics
from serving.models.catalog import Catalog
from serving.models.engine import Engine, open_engine, overrides_of, run_batch
from serving.models.loads import on_daemon_thread
from serving.models.resident import NoRoom
from serving.models.residents import Residents
from serving.state import RETRY_S, Serving, Starting
from settings import Settings

log = logging.getLogger("embedding")

MAX_RESTARTS = 3
WINDOW_S = 600.0  # restarts are counted over so long; more of them mean that it is no accident
PAUSE_S = 1.0  # between a death and its successor: time for whoever watches


class CannotStart(Exception):
    """The text says why, in one line."""


class Server:
    """`open_engine` may be another than the real one, in tests."""

    def __init__(
        self, settings: Settings, engine: Callable[[Settings], Engine] = open_engine
    ) -> None:
        self.state: Starting | Serving = Starting(settings)
        self.metrics = Metrics()
        self.metrics.registry.register(Gauges(lambda: self.state))
        self._open_engine = engine
        self._is_draining = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def settings(self) -> Settings:
        return self.state.settings

    @property
    def unready_because(self) -> str:
        """Empty when requests are served."""
        return self.state.fault

    @property
    def status(self) -> str:
        """starting, ok, draining or failed."""
        state = self.state
        if self._is_draining:
            return "draining"
        if isinstance(state, Starting):
            return "failed" if state.has_failed else "starting"
        return "failed" if state.fault else "ok"

    @property
    def serving(self) -> Serving:
        """Raises NotReady while no request is served."""
        state, fault = self.state, self.state.fault
        if fault or isinstance(state, Starting):
            raise NotReady(fault, RETRY_S)
        return state

    async def start(self) -> None:
        """Load what is to be there from the start, and serve. Raises CannotStart."""
        started = time.perf_counter()
        try:
            serving = await self._load()
        except (ModelError, DeviceError, NoRoom) as error:
            raise self._cannot_start(str(error)) from error
        except Exception as error:
            log.exception("loading failed")
            raise self._cannot_start(f"loading failed: {type(error).__name__}") from error
        serving.is_draining = self._is_draining
        self.state = serving
        self._tasks.append(asyncio.create_task(supervise(serving.worker)))
        await _report(serving)
        log.info("ready after %.1f s", time.perf_counter() - started)

    def drain(self) -> None:
        """Refuse new requests; those that were admitted go on."""
        self._is_draining = True
        if isinstance(self.state, Serving):
            self.state.is_draining = True
        else:
            self.state.fault = "the server is shutting down"

    async def close(self) -> None:
        """Fail what is still open and stop. Twice is harmless."""
        self.drain()
        for task in self._tasks:
            task.cancel()
        if isinstance(self.state, Serving):
            await asyncio.to_thread(self.state.worker.stop, 0.0)
            await self.state.residents.close()
            self.state.tokenizer.stop()

    def _cannot_start(self, reason: str) -> CannotStart:
        self.state = Starting(self.settings, reason, has_failed=True)
        return CannotStart(reason)

    def _tell(self, reason: str) -> None:
        if isinstance(self.state, Starting):
            self.state.fault = reason

    async def _load(self) -> Serving:
        settings = self.settings
        named = find_models(settings.models, settings.models_dir)
        candidates = named or default_models(settings.models_dir)
        self._tell(f"loading model {candidates[0].name}")
        engine = await on_daemon_thread(lambda: self._open_engine(settings))
        residents = Residents(
            load=engine.load,
            measure=engine.measure,
            release=engine.release,
            available=memory.available_bytes,
            max_bytes=settings.max_model_bytes,
            keep_alive_s=settings.keep_alive,
            load_timeout_s=settings.load_timeout_s,
        )
        pinned = await self._pin(residents, candidates, all_of_them=bool(named))
        worker = Worker(
            run_batch,
            settings.max_batch_tokens,
            max_urgent_tokens=settings.max_urgent_tokens if engine.may_preempt else 0,
            on_start=engine.on_worker_start,
            on_batch=self.metrics.count_batch,
            is_out_of_memory=engine.is_out_of_memory,
            free=engine.release,
        )
        catalog = Catalog(settings.models_dir, pinned, overrides_of(settings))
        return Serving(settings, catalog, residents, worker, self.metrics)

    async def _pin(
        self, residents: Residents, candidates: list[ModelFolder], all_of_them: bool
    ) -> list[ModelFolder]:
        """Load every model that was named; else the first candidate that loads."""
        for index, folder in enumerate(candidates):
            self._tell(f"loading model {folder.name}")
            try:
                await residents.pin(folder)
            except (ModelError, NoRoom) as error:
                if all_of_them or index == len(candidates) - 1:
                    raise
                log.error("model %s cannot be served, trying the next: %s", folder.name, error)
            else:
                if not all_of_them:
                    return [folder]
        return candidates


async def supervise(worker: Worker, pause_s: float = PAUSE_S, window_s: float = WINDOW_S) -> None:
    """Until cancelled, or until the thread has died too often or was stopped."""
    deaths: deque[float] = deque()
    while True:
        await on_daemon_thread(worker.join)
        if worker.is_stopping:
            return
        now = time.monotonic()
        while deaths and now - deaths[0] > window_s:
            deaths.popleft()
        if len(deaths) == MAX_RESTARTS:
            log.error("the compute thread died %d times: it stays dead", MAX_RESTARTS + 1)
            return
        deaths.append(now)
        await asyncio.sleep(pause_s)
        log.warning("the compute thread starts again (%d of %d)", len(deaths), MAX_RESTARTS)
        try:
            if not worker.alive:
                worker.revive()
        except RuntimeError:  # the system has no thread left; it counts as a death
            log.exception("the compute thread did not start")


async def _report(serving: Serving) -> None:
    """What else there is, and what stands in for what."""
    catalog = serving.catalog
    if catalog.default.is_stand_in:
        log.warning(
            "serving the stand-in model %s: no model in %s; ./download-model.sh fetches bge-m3",
            catalog.default.name,
            serving.settings.models_dir,
        )
    entries = await asyncio.to_thread(catalog.entries)
    pinned = {folder.name for folder in catalog.pinned}
    others = [entry for entry in entries if entry.folder.name not in pinned]
    if fit := ", ".join(entry.folder.name for entry in others if entry.recipe):
        log.info("loaded at first use: %s", fit)
    for entry in others:
        if entry.recipe is None:
            log.warning("model %s cannot be served: %s", entry.folder.name, entry.reason)
