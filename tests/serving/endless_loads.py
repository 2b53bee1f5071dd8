"""The server's app over fake models, of which those called "endless…" never come to memory.

uvicorn --factory tests.serving.endless_loads:app_of_endless_loads
"""

from __future__ import annotations

import threading
from typing import Any
from unittest import mock

from fastapi import FastAPI

from embedding import app
from engine.folder.store import ModelFolder
from serving import server
from serving.models.engine import Engine
from settings import Settings
from tests.serving.fake_models import FakeEngine


def app_of_endless_loads() -> FastAPI:
    """Changes this process's engine for good."""
    mock.patch.object(server.Server.__init__, "__defaults__", (_engine,)).start()
    return app


def _engine(settings: Settings) -> Engine:
    fake, never = FakeEngine(), threading.Event()

    def load(folder: ModelFolder) -> Any:
        if folder.name.startswith("endless"):
            never.wait()
        return fake.load(folder)

    return Engine(
        load=load,
        measure=fake.measure,
        release=fake.release,
        on_worker_start=lambda: None,
        is_out_of_memory=lambda error: False,
        may_preempt=True,
    )
