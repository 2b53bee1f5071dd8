"""Tiny random models of every family, built once a session, and loaders for them."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bench.loaded import load_embedder, load_reranker
from bench.random_models import SHAPES, build
from engine.devices import Device
from engine.fitting import LoadOptions
from engine.forward import linear
from engine.model import EmbeddingModel, RerankingModel
from engine.text.tokenizing import Tokenizer
from engine.text.tokens import TextLimits
from tests.engine.oracle import Oracle

CPU = Device("cpu", "cpu", "float32", "unpadded")
FAMILIES = ("tiny-bert", "tiny-xlm-roberta", "tiny-qwen3")

Folders = Callable[[str], Path]
Embedders = Callable[..., EmbeddingModel]
Rerankers = Callable[..., RerankingModel]


@pytest.fixture(scope="package", autouse=True)
def same_type_on_every_processor() -> Iterator[None]:
    """`auto` means float32 unless a test says otherwise."""
    with mock.patch.object(linear, "is_faster", return_value=False):
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folder of a tiny model by its shape's name."""
    root = tmp_path_factory.mktemp("tiny-models")
    return lambda name: build(name, root)


@pytest.fixture
def copy_tiny(tiny_folder: Folders, tmp_path: Path) -> Folders:
    """The same, copied, so that a test may change its files."""
    return lambda name: Path(shutil.copytree(tiny_folder(name), tmp_path / "copies" / name))


@pytest.fixture(scope="session")
def load_tiny(tiny_folder: Folders) -> Embedders:
    """A tiny embedder by its shape's name, with LoadOptions as keywords."""

    @functools.cache
    def usual(name: str) -> EmbeddingModel:
        return load_embedder(name, tiny_folder(name), CPU, LoadOptions())

    def load(name: str, **options: Any) -> EmbeddingModel:
        if not options:
            return usual(name)
        return load_embedder(name, tiny_folder(name), CPU, LoadOptions(**options))

    return load


@pytest.fixture(scope="session")
def load_tiny_reranker(tiny_folder: Folders) -> Rerankers:
    """A tiny reranker by its shape's name, with LoadOptions as keywords."""

    @functools.cache
    def usual(name: str) -> RerankingModel:
        return load_reranker(name, tiny_folder(name), CPU, LoadOptions())

    def load(name: str, **options: Any) -> RerankingModel:
        if not options:
            return usual(name)
        return load_reranker(name, tiny_folder(name), CPU, LoadOptions(**options))

    return load


@pytest.fixture(scope="session", params=FAMILIES)
def pair(
    request: pytest.FixtureRequest, tiny_folder: Folders, load_tiny: Embedders
) -> tuple[EmbeddingModel, Oracle]:
    """Each family's served model and its oracle."""
    shape = SHAPES[request.param]
    oracle = Oracle(tiny_folder(request.param), shape.pooling, shape.max_length)
    return load_tiny(request.param), oracle


@pytest.fixture
def project_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """What the project logs from INFO on; a running server's logger keeps it to itself."""
    monkeypatch.setattr(logging.getLogger("embedding"), "propagate", True)
    caplog.set_level(logging.INFO, logger="embedding")
    return caplog


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], max_length: int, **limits: Any
) -> list[list[int]]:
    """Ids of each text; `limits` are TextLimits' other fields."""
    encoded = tokenizer.encode(texts, TextLimits(max_length, **limits))
    return [each.ids for each in encoded]


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def change_json(path: Path, **changes: Any) -> None:
    """Set the keys of a JSON object; None takes a key out."""
    stored = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    write_json(path, {key: value for key, value in stored.items() if value is not None})
