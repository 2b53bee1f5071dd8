"""Tiny random models of every family, built once a session, and loaders for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.random_models import SHAPES, build
from engine.devices import Device
from engine.loading import LoadOptions, load_model
from engine.model import EmbeddingModel
from tests.engine.oracle import Oracle

CPU = Device("cpu", "cpu", "float32", "packed")
FAMILIES = ("tiny-bert", "tiny-xlm-roberta", "tiny-qwen3")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model by its shape's name."""
    root = tmp_path_factory.mktemp("tiny-models")
    return lambda name: build(name, root)


@pytest.fixture(scope="session")
def load_tiny(tiny_folder: Callable[[str], Path]) -> Callable[..., EmbeddingModel]:
    """A tiny model by its shape's name, with LoadOptions as keywords."""

    def load(name: str, **options: object) -> EmbeddingModel:
        return load_model(name, tiny_folder(name), CPU, LoadOptions(**options))  # type: ignore[arg-type]

    return load


@pytest.fixture(scope="session", params=FAMILIES)
def pair(
    request: pytest.FixtureRequest,
    tiny_folder: Callable[[str], Path],
    load_tiny: Callable[..., EmbeddingModel],
) -> tuple[EmbeddingModel, Oracle]:
    """Each family's served model and its oracle."""
    shape = SHAPES[request.param]
    oracle = Oracle(tiny_folder(request.param), shape.pooling, shape.max_length)
    return load_tiny(request.param), oracle
