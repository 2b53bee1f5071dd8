"""The app: settings, then a model on its lane, then routes.

`uvicorn embedding:app` serves; the command `embedding serve` does the same with settings as flags.
Importing this module is cheap: torch is imported by the loader, on a thread of the lifespan, while
/health already answers 503 with the reason. What cannot start says so in one line and exits with 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from api import errors, logs, ollama, operations
from api.draining import drain_on_signals
from api.middleware import RequestFrame
from api.service import Model, Service
from batcher.lane import Lane
from engine.cpus import count_cpus
from engine.devices import DeviceError, prepare_autoload
from engine.environment import prepare_environment
from engine.errors import ModelError
from engine.store import ModelFolder, find_model
from settings import BadSetting, Settings, read_flags, read_settings, unknown_variables

T = TypeVar("T")
log = logging.getLogger("embedding")


def create_app() -> FastAPI:
    """Routes over a Service that its lifespan fills."""
    service = Service()
    app: FastAPI = FastAPIOffline(
        title="Embedding server",
        description="Embeddings without a GPU and without a network.",
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(RequestFrame, service=service)
    app.include_router(ollama.router)
    app.include_router(operations.router)
    errors.install(app)
    return app


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads in the background, serves, drains."""
    service: Service = app.state.service
    stop = drain_on_signals(service)
    starting = asyncio.create_task(_start(service, stop))
    yield
    starting.cancel()
    service.drain()
    if service.lane is not None:
        await asyncio.to_thread(service.lane.stop, 0.0)
    service.tokenizer_thread.shutdown(wait=False, cancel_futures=True)


async def _start(service: Service, stop: Callable[[int], None]) -> None:
    try:
        settings = service.settings = read_settings()
        logs.configure(settings.log_level, settings.log_format)
        for line in unknown_variables():
            log.warning("%s", line)
        folder = find_model(settings.model, settings.models_dir)
        service.reason = f"loading model {folder.name}"
        started = time.perf_counter()
        model, on_lane_start = await _on_daemon_thread(lambda: _load(settings, folder))
        lane = Lane(_run_step(model), settings.max_step_tokens, on_start=on_lane_start)
        service.start(model, lane, folder.is_stand_in, time.perf_counter() - started)
    except (BadSetting, ModelError, DeviceError) as error:
        _refuse_to_start(service, stop, str(error))
        return
    except Exception as error:
        log.exception("loading failed")
        _refuse_to_start(service, stop, f"loading failed: {type(error).__name__}")
        return
    if folder.is_stand_in:
        log.warning(
            "serving the stand-in model %s: no model in %s; ./download-model.sh fetches bge-m3",
            folder.name,
            settings.models_dir,
        )
    log.info("ready after %.1f s", service.load_s)


def _load(settings: Settings, folder: ModelFolder) -> tuple[Model, Callable[[], None]]:
    """Blocking. The model, and what the lane's thread must do first."""
    prepare_environment(os.environ)
    prepare_autoload(settings.device, os.environ)
    from engine import devices, loading  # torch and transformers come with these

    threads = count_cpus() if settings.threads == "auto" else settings.threads
    device = devices.choose_device(settings.device)
    log.info("device %s, %d threads", device.name, threads)
    loading.set_threads(threads)
    options = loading.LoadOptions(
        dtype=settings.dtype,
        layout=settings.layout,
        linear=settings.linear,
        pooling=settings.pooling,
        max_length=settings.max_length,
    )
    model = loading.load_model(folder.name, folder.path, device, options)
    return model, lambda: loading.set_threads(threads)


def _run_step(model: Model) -> Callable[[Any, list[Any]], Any]:
    return lambda group, payloads: model.run(payloads)


async def _on_daemon_thread(work: Callable[[], T]) -> T:
    """Like `asyncio.to_thread`, but a process that stops meanwhile need not wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: Any) -> None:
        if not done.cancelled():
            setter(value)

    def main() -> None:
        try:
            result = work()
        except BaseException as error:
            outcome: tuple[Callable[[Any], None], Any] = (done.set_exception, error)
        else:
            outcome = (done.set_result, result)
        with contextlib.suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=main, name="loader", daemon=True).start()
    return await done


def _refuse_to_start(service: Service, stop: Callable[[int], None], reason: str) -> None:
    """One clear line, then exit code 1."""
    service.state, service.reason = "failed", reason
    log.error("cannot start: %s", reason)
    stop(1)


app = create_app()


_USAGE = """usage: embedding serve [flags]

  serve    serve models over HTTP; `embedding serve --help` lists the flags"""


def main() -> None:
    """The command `embedding`. Flags become environment variables, which reloaded and worker
    processes see too. Exit code 2 for a bad command or setting."""
    command, *rest = sys.argv[1:] or [""]
    if command in ("-h", "--help", "help"):
        print(_USAGE)
        return
    if command != "serve":
        print(_USAGE, file=sys.stderr)
        sys.exit(2)
    try:
        flags = read_flags(rest)
    except BadSetting as error:
        print(f"cannot start: {error}", file=sys.stderr)
        sys.exit(2)
    os.environ.update(flags.as_environment())
    uvicorn.run("embedding:app", host=flags.host, port=flags.port, reload=flags.reload)


if __name__ == "__main__":
    main()
