"""The real app over a fake model of ten lines, served by uvicorn in a thread: no torch, no wait."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import uvicorn

from api.service import Service
from batcher.lane import Lane
from embedding import create_app
from engine.errors import TextTooLong
from settings import read_settings

TIMEOUT_S = 60.0


def until(holds: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Poll until something is true. AssertionError when that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not so within {timeout_s} s"
        time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class FakeTokens:
    ids: list[int]


class FakeModel:
    """A token a character and two special ones; vectors depend on a text's tokens alone."""

    name, dim, max_length = "Fake-Model", 8, 16

    def __init__(self) -> None:
        self.may_run = threading.Event()
        self.may_run.set()
        self.is_running = threading.Event()
        self.steps: list[int] = []

    def tokenize(
        self, texts: Sequence[str], max_length: int, truncate: bool, first_index: int
    ) -> list[FakeTokens]:
        for i, text in enumerate(texts):
            if not truncate and len(text) + 2 > max_length:
                raise TextTooLong(first_index + i, len(text) + 2, max_length)
        return [FakeTokens([1, *map(ord, t[: max(0, max_length - 2)]), 2]) for t in texts]

    def run(self, step: Sequence[FakeTokens]) -> Any:
        self.is_running.set()
        assert self.may_run.wait(TIMEOUT_S)
        self.steps.append(len(step))
        rows = [np.random.default_rng(t.ids).standard_normal(self.dim) for t in step]
        return np.asarray(rows, np.float32)  # [n, dim]

    def describe(self) -> dict[str, str | int]:
        return {"model": self.name, "dim": self.dim}


@dataclass(frozen=True, slots=True)
class FakeServer:
    """A running server whose state a test may look at and set."""

    url: str
    model: FakeModel
    service: Service

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False)

    def embed(self, body: Any, **options: Any) -> httpx.Response:
        with self.client() as client:
            return client.post("/api/embed", json=body, **options)

    @contextlib.contextmanager
    def held_lane(self) -> Iterator[None]:
        """Inside, a step runs that does not end, so that what is sent waits for one next step."""
        self.model.may_run.clear()
        self.model.is_running.clear()
        holder = threading.Thread(target=self.embed, args=({"input": "hold"},))
        holder.start()
        try:
            assert self.model.is_running.wait(TIMEOUT_S)
            yield
        finally:
            self.model.may_run.set()
            holder.join()

    def wait_for(self, holds: Callable[[Lane], bool]) -> None:
        """Until something is true of the lane; AssertionError when it takes too long."""
        lane = self.service.lane
        assert lane is not None
        until(lambda: holds(lane))


@contextlib.contextmanager
def serve_fake(*, ready: bool = True, **settings: Any) -> Iterator[FakeServer]:
    """`settings` by name; not ready means: still starting, as while a model loads."""
    app, model = create_app(), FakeModel()
    service: Service = app.state.service
    service.settings = read_settings(_env_file=None, **settings)
    lane = Lane(lambda group, payloads: model.run(payloads), 1024)
    if ready:
        service.start(model, lane, is_stand_in=False, load_s=1.5)
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield FakeServer(f"http://127.0.0.1:{listening.getsockname()[1]}", model, service)
    finally:
        server.should_exit = True
        thread.join()
        lane.stop(0.0)
        service.tokenizer_thread.shutdown()
        listening.close()
