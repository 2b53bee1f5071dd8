"""The app: routes over a Server that its lifespan starts, drains and closes.

Every module of api/dialects that has `routes` is served, and so are operations and page: nothing
else need be told of them. Importing this is cheap: torch is imported by the loader, in the
background.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import pkgutil
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

import api.dialects
from api import operations, page
from api.http import errors
from api.http.draining import drain_on_signals, uvicorn_of_process
from api.http.frame import Exchanges, RequestFrame
from api.http.protocol import bounded
from api.http.routes import Dispatcher, Routes, Table
from api.version import server_version
from serving.configuration import BadSetting, configure_log, read_settings
from serving.server import CannotStart, Server
from serving.state import Starting
from settings import Settings

log = logging.getLogger("embedding")


def create_app(make_server: Callable[[], Server] | None = None) -> FastAPI:
    """`make_server` may give a server of other settings than the environment's, or raise
    BadSetting."""
    app: FastAPI = FastAPIOffline(
        title="Embedding server",
        version=server_version(),
        description="Embeddings and reranking without a GPU and without a network.",
        lifespan=lifespan,
    )
    app.state.make_server = make_server or _server_of_environment
    modules = all_routes()
    app.add_middleware(Dispatcher, table=Table(modules))
    app.add_middleware(RequestFrame)  # the last one sees a request first
    for routes in modules:
        app.include_router(routes.router)
    errors.install(app)
    return app


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads in the background, serves, drains. What cannot start says so in one line, then the
    process exits with 1."""
    try:
        app.state.server = server = app.state.make_server()
        starting = asyncio.create_task(server.start())
    except BadSetting as error:
        app.state.server = server = Server(Settings.model_construct())
        server.state = Starting(server.settings, str(error), has_failed=True)
        starting = asyncio.create_task(_fail(CannotStart(str(error))))
    app.state.keys = server.settings.api_keys
    app.state.exchanges = Exchanges(server.metrics)
    if found := uvicorn_of_process():  # no connection is accepted before this is over
        found[0].config.http_protocol_class = bounded(server.settings)
    stop = drain_on_signals(app)
    starting.add_done_callback(lambda task: _stop_if_failed(task, stop))
    yield
    starting.cancel()
    await server.close()


def _server_of_environment() -> Server:
    settings = read_settings()
    configure_log(settings.log_level, settings.log_format)
    return Server(settings)


async def _fail(error: CannotStart) -> None:
    raise error


def _stop_if_failed(task: asyncio.Task[None], stop: Callable[[int], None]) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, CannotStart):
        log.error("cannot start: %s", error)
        stop(1)
    elif error is not None:  # it serves, and could not say what else there is
        log.error("the report at start failed", exc_info=error)


def all_routes() -> list[Routes]:
    """Those of the dialects first, by their modules' names."""
    names = [module.name for module in pkgutil.iter_modules(api.dialects.__path__)]
    modules = [importlib.import_module(f"api.dialects.{name}") for name in sorted(names)]
    found = [getattr(module, "routes", None) for module in (*modules, operations, page)]
    return [routes for routes in found if isinstance(routes, Routes)]
