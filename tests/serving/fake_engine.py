"""The real app over fake models, served by uvicorn in a thread: no torch, no waiting."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from api.http.frame import Exchanges
from api.http.protocol import bounded
from batcher.worker import Worker
from embedding import create_app
from limits import Limits
from serving.configuration import read_settings
from serving.models.engine import Engine, overrides_of
from serving.models.resident import Resident
from serving.server import Server
from serving.state import Serving, Starting
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
    server: Server
    engine: FakeEngine
    models_dir: Path
    exchanges: Exchanges

    @property
    def open_requests(self) -> int:
        return len(self.exchanges.open)

    @property
    def serving(self) -> Serving:
        state = self.server.state
        assert isinstance(state, Serving)
        return state

    @property
    def model(self) -> Any:
        """The default one."""
        return self.resident(self.serving.catalog.default.name).model

    def resident(self, name: str) -> Resident:
        """A model in memory."""
        resident = self.serving.residents.get(name)
        assert resident is not None
        return resident

    @property
    def resident_names(self) -> list[str]:
        """Models in memory, least recently used first."""
        return [resident.name for resident in self.serving.residents.resident()]

    @property
    def num_waiting_for_loads(self) -> int:
        return sum(resident.num_users for resident in self.serving.residents.loading())

    def say_it_is(self, reason: str) -> None:
        """Of a server that still starts."""
        assert isinstance(self.server.state, Starting)
        self.server.state.fault = reason

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
    def held_worker(self) -> Iterator[None]:
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

    def wait_for(self, holds: Callable[[Worker], bool]) -> None:
        """Until something is true of the worker; AssertionError when it takes too long."""
        until(lambda: holds(self.serving.worker))


class _NeverReady(Server):
    """Still starting, as while a model loads."""

    async def start(self) -> None:
        pass


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
        read = read_settings(
            _env_file=None, models_dir=models_dir, model=",".join(pinned), **settings
        )
        fake = engine or FakeEngine()
        fake.overrides = overrides_of(read)
        kind = Server if ready else _NeverReady
        server = kind(read, lambda settings: engine_of(fake))
        app = create_app(lambda: server)
        port = stack.enter_context(_listening(app, read))
        if ready:
            until(lambda: server.status != "starting")
            assert server.status == "ok", server.unready_because
        yield FakeServer(f"http://127.0.0.1:{port}", server, fake, models_dir, app.state.exchanges)


def engine_of(fake: FakeEngine) -> Engine:
    """The fake as the server opens it."""
    return Engine(
        load=fake.load,
        measure=fake.measure,
        release=fake.release,
        on_worker_start=lambda: None,
        is_out_of_memory=lambda error: isinstance(error, MemoryError),
        may_preempt=False,
    )


@contextlib.contextmanager
def _listening(app: FastAPI, limits: Limits) -> Iterator[int]:
    """Serve in a thread until the block ends; gives the port."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    config = uvicorn.Config(app, lifespan="on", log_config=None, ws="none", http=bounded(limits))
    server = uvicorn.Server(config)
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
