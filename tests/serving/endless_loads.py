"""The server's app over fake models, of which those called "endless…" never come to memory.

uvicorn --factory tests.serving.endless_loads:app_of_endless_loads
"""

from __future__ import annotations

import threading
from typing import Any
from unittest import mock

from fastapi import FastAPI

from embedding import app
from engine.store import ModelFolder
from serving import lifecycle
from tests.serving.fake_models import FakeEngine


def app_of_endless_loads() -> FastAPI:
    """Changes this process's engine for good."""
    mock.patch.object(lifecycle, "open_engine", return_value=_engine()).start()
    return app


def _engine() -> lifecycle.Engine:
    fake, never = FakeEngine(), threading.Event()

    def load(folder: ModelFolder) -> Any:
        if folder.name.startswith("endless"):
            never.wait()
        return fake.load(folder)

    return lifecycle.Engine(
        load=load,
        measure=fake.measure,
        release=fake.release,
        on_lane_start=lambda: None,
        is_out_of_memory=lambda error: False,
        yields=True,
        on_cpu=True,
    )
