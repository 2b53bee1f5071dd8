"""The real app over fake models, served by uvicorn in a thread: no torch, no waiting."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from batcher.lane import Lane
from embedding import create_app
from engine.store import find_models
from serving.catalog import Catalog
from serving.lifecycle import overrides_of, step_budget
from serving.model_steps import run_step
from serving.residents import Resident, Residents
from serving.server import Service
from serving.setting_sources import read_settings
from settings import Settings
from tests.serving.fake_models import TIMEOUT_S, FakeEngine, write_model

NAME = "Fake-Model"


def until(holds: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Poll until something is true. AssertionError when that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not so within {timeout_s} s"
        time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class FakeServer:
    """A running server whose state a test may look at and set."""

    url: str
    service: Service
    engine: FakeEngine
    models_dir: Path

    @property
    def model(self) -> Any:
        """The default one."""
        assert self.service.catalog is not None
        return self.resident(self.service.catalog.default.name).model

    def resident(self, name: str) -> Resident:
        """A model in memory."""
        assert self.service.residents is not None
        resident = self.service.residents.get(name)
        assert resident is not None
        return resident

    @property
    def resident_names(self) -> list[str]:
        """Models in memory, least recently used first."""
        assert self.service.residents is not None
        return [resident.name for resident in self.service.residents.resident()]

    @property
    def num_waiting_for_loads(self) -> int:
        assert self.service.residents is not None
        return sum(resident.num_users for resident in self.service.residents.loading())

    def client(self) -> httpx.Client:
        """Without TLS: to read the system's certificates takes longer than most requests."""
        return httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False, verify=False)

    def get(self, path: str) -> httpx.Response:
        with self.client() as client:
            return client.get(path)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=body, **options)

    def embed(self, body: Any, **options: Any) -> httpx.Response:
        return self.post("/api/embed", body, **options)

    @contextlib.contextmanager
    def held_lane(self) -> Iterator[None]:
        """Inside, a step runs that does not end, so that what is sent waits for one next step."""
        self.engine.may_run.clear()
        self.engine.is_running.clear()
        holder = threading.Thread(target=self.embed, args=({"input": "hold"},))
        holder.start()
        try:
            assert self.engine.is_running.wait(TIMEOUT_S)
            yield
        finally:
            self.engine.may_run.set()
            holder.join()

    def wait_for(self, holds: Callable[[Lane], bool]) -> None:
        """Until something is true of the lane; AssertionError when it takes too long."""
        lane = self.service.lane
        assert lane is not None
        until(lambda: holds(lane))


@contextlib.contextmanager
def serve_fake(
    *,
    ready: bool = True,
    pinned: Sequence[str] = (NAME,),
    models_dir: Path | None = None,
    engine: FakeEngine | None = None,
    **settings: Any,
) -> Iterator[FakeServer]:
    """Settings go by name; not ready means: still starting, as while a model loads.

    Without `models_dir` there is one model, NAME.
    """
    with contextlib.ExitStack() as stack:
        if models_dir is None:
            models_dir = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            write_model(models_dir, NAME)
        app, engine = create_app(), engine or FakeEngine()
        service: Service = app.state.service
        service.settings = read_settings(_env_file=None, models_dir=models_dir, **settings)
        engine.overrides = overrides_of(service.settings)
        app.router.lifespan_context = _lifespan(engine, pinned if ready else ())
        port = stack.enter_context(_listening(app))
        yield FakeServer(f"http://127.0.0.1:{port}", service, engine, models_dir)
        if service.lane is not None:
            service.lane.stop(0.0)
        service.tokenizer_thread.shutdown()


def _lifespan(engine: FakeEngine, pinned: Sequence[str]) -> Any:
    """As the real one without an engine: models belong to the server's loop."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service: Service = app.state.service
        settings = service.settings
        assert settings is not None
        residents = _residents(engine, settings)
        if pinned:
            folders = find_models(list(pinned), settings.models_dir)
            for folder in folders:
                await residents.pin(folder)
            catalog = Catalog(settings.models_dir, folders, overrides_of(settings))
            lane = Lane(run_step, step_budget(settings), on_step=service.metrics.count_step)
            service.start(catalog, residents, lane)
        yield
        await residents.close()

    return lifespan


def _residents(engine: FakeEngine, settings: Settings) -> Residents:
    return Residents(
        load=engine.load,
        measure=engine.measure,
        release=engine.release,
        available=lambda: 1 << 40,
        max_bytes=settings.max_model_bytes,
        keep_alive_s=settings.keep_alive,
        load_timeout_s=settings.load_timeout_s,
    )


@contextlib.contextmanager
def _listening(app: FastAPI) -> Iterator[int]:
    """Serve in a thread until the block ends; gives the port."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started, "the server did not start"
        port: int = listening.getsockname()[1]
        yield port
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
