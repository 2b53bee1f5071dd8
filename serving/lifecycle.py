"""The app's life: settings, then models on their lane, then serving, then draining.

Loading happens in the background while /health already answers 503 with the reason; torch is
imported there and not before. What cannot start says so in one line and exits with 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from api.http.draining import drain_on_signals
from batcher.budget import CANDIDATES, CPU_CANDIDATES, StepBudget
from batcher.lane import Lane
from engine import memory
from engine.cpus import count_cpus
from engine.devices import DeviceError, prepare_autoload
from engine.environment import prepare_environment
from engine.errors import ModelError
from engine.recipe import Overrides
from engine.store import ModelFolder, default_models, find_models
from serving import logs
from serving.catalog import Catalog
from serving.model_steps import run_step
from serving.residents import NoRoom, Residents, on_daemon_thread
from serving.server import Service
from serving.setting_sources import BadSetting, read_settings, unknown_variables
from serving.supervision import supervise
from settings import Settings

log = logging.getLogger("embedding")


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads in the background, serves, drains."""
    service: Service = app.state.service
    stop = drain_on_signals(service)
    starting = asyncio.create_task(_start(service, stop))
    supervising = asyncio.create_task(_supervise(service, starting))
    yield
    starting.cancel()
    supervising.cancel()
    service.drain()
    if service.lane is not None:
        await asyncio.to_thread(service.lane.stop, 0.0)
    if service.residents is not None:
        await service.residents.close()
    service.tokenizer_thread.shutdown(wait=False, cancel_futures=True)


async def _supervise(service: Service, starting: asyncio.Task[None]) -> None:
    await starting
    if service.lane is not None:
        await supervise(service.lane)


@dataclass(frozen=True, slots=True)
class Engine:
    """What of the engine the server calls, bound to one device. All of it blocks."""

    load: Callable[[ModelFolder], Any]
    measure: Callable[[ModelFolder], int]
    release: Callable[[], None]
    on_lane_start: Callable[[], None]
    is_out_of_memory: Callable[[BaseException], bool]
    yields: bool
    on_cpu: bool


async def _start(service: Service, stop: Callable[[int], None]) -> None:
    started = time.perf_counter()
    try:
        settings = service.settings = read_settings()
        logs.configure(settings.log_level, settings.log_format)
        for line in unknown_variables():
            log.warning("%s", line)
        named = find_models(settings.models, settings.models_dir)
        candidates = named or default_models(settings.models_dir)
        service.reason = f"loading model {candidates[0].name}"
        engine = await on_daemon_thread(lambda: open_engine(settings))
        residents = Residents(
            load=engine.load,
            measure=engine.measure,
            release=engine.release,
            available=memory.available_bytes,
            max_bytes=settings.max_model_bytes,
            keep_alive_s=settings.keep_alive,
            load_timeout_s=settings.load_timeout_s,
        )
        pinned = await _pin(service, residents, candidates, all_of_them=bool(named))
        lane = Lane(
            run_step,
            step_budget(settings, engine.on_cpu),
            max_urgent_tokens=settings.max_urgent_tokens if engine.yields else 0,
            on_start=engine.on_lane_start,
            on_step=service.metrics.count_step,
            is_out_of_memory=engine.is_out_of_memory,
            free=engine.release,
        )
        catalog = Catalog(settings.models_dir, pinned, overrides_of(settings))
        service.start(catalog, residents, lane)
    except (BadSetting, ModelError, DeviceError, NoRoom) as error:
        _refuse_to_start(service, stop, str(error))
        return
    except Exception as error:
        log.exception("loading failed")
        _refuse_to_start(service, stop, f"loading failed: {type(error).__name__}")
        return
    await _report(settings, catalog)
    log.info("ready after %.1f s", time.perf_counter() - started)


async def _pin(
    service: Service, residents: Residents, candidates: list[ModelFolder], all_of_them: bool
) -> list[ModelFolder]:
    """Load every model that was named; else the first candidate that loads."""
    for place, folder in enumerate(candidates):
        service.reason = f"loading model {folder.name}"
        try:
            await residents.pin(folder)
        except (ModelError, NoRoom) as error:
            if all_of_them or place == len(candidates) - 1:
                raise
            log.error("model %s cannot be served, trying the next: %s", folder.name, error)
        else:
            if not all_of_them:
                return [folder]
    return candidates


async def _report(settings: Settings, catalog: Catalog) -> None:
    """What else there is, and what stands in for what."""
    if catalog.default.is_stand_in:
        log.warning(
            "serving the stand-in model %s: no model in %s; ./download-model.sh fetches bge-m3",
            catalog.default.name,
            settings.models_dir,
        )
    entries = await asyncio.to_thread(catalog.entries)
    pinned = {folder.name for folder in catalog.pinned}
    others = [entry for entry in entries if entry.folder.name not in pinned]
    if fit := ", ".join(entry.folder.name for entry in others if entry.recipe):
        log.info("loaded at first use: %s", fit)
    for entry in others:
        if entry.recipe is None:
            log.warning("model %s cannot be served: %s", entry.folder.name, entry.reason)


def open_engine(settings: Settings) -> Engine:
    """Blocking: imports torch and chooses the device. Raises DeviceError."""
    prepare_environment(os.environ)
    prepare_autoload(settings.device, os.environ)
    from engine import devices, loading  # torch and transformers come with these

    threads = count_cpus() if settings.threads == "auto" else settings.threads
    device = devices.choose_device(settings.device)
    log.info("device %s, %d threads", device.name, threads)
    options = loading.LoadOptions(
        dtype=settings.dtype,
        layout=settings.layout,
        linear=settings.linear,
        overrides=overrides_of(settings),
    )
    num_bytes = loading.bytes_per_value(device, options)

    def load(folder: ModelFolder) -> Any:
        loading.set_threads(threads)  # each thread has its own count
        return loading.load_model(folder.name, folder.path, device, options)

    return Engine(
        load=load,
        measure=lambda folder: memory.model_bytes(folder.path, num_bytes),
        release=lambda: memory.release(device.kind),
        on_lane_start=lambda: loading.set_threads(threads),
        is_out_of_memory=loading.is_out_of_memory,
        on_cpu=device.kind == "cpu",
        yields=settings.yields == "on" or (settings.yields == "auto" and device.kind == "cpu"),
    )


def step_budget(settings: Settings, on_cpu: bool = True) -> StepBudget | int:
    """Found while running, or as set."""
    if settings.max_step_tokens != "auto":
        return settings.max_step_tokens
    return StepBudget(CPU_CANDIDATES if on_cpu else CANDIDATES)


def overrides_of(settings: Settings) -> Overrides:
    return Overrides(settings.pooling, settings.max_length, settings.prompts)


def _refuse_to_start(service: Service, stop: Callable[[int], None], reason: str) -> None:
    """One clear line, then exit code 1."""
    service.state, service.reason = "failed", reason
    log.error("cannot start: %s", reason)
    stop(1)
