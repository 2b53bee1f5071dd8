"""Ollama's list routes: GET /api/tags, the models there are, and /api/ps, those in memory."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from api.catalog import Entry
from api.errors import ERROR_RESPONSES
from api.service import Service
from engine.errors import ModelError
from engine.memory import num_values

router = APIRouter(tags=["Ollama"])

_FOR_EVER = "9999-12-31T23:59:59Z"


class ModelDetails(BaseModel):
    """`family` is transformers' model_type."""

    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(BaseModel):
    """One model; `size` in bytes."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: ModelDetails


class Tags(BaseModel):
    """200 of GET /api/tags"""

    models: list[Tag]


class Running(Tag):
    """A model in memory."""

    expires_at: str
    size_vram: int
    context_length: int


class RunningModels(BaseModel):
    """200 of GET /api/ps"""

    models: list[Running]


@router.get("/api/tags", summary="Models that can be served", responses=ERROR_RESPONSES)
async def get_tags(request: Request) -> Tags:
    """Pinned ones first. What cannot be served is in the log and in `embedding models`."""
    service: Service = request.app.state.service
    service.admit()
    assert service.catalog is not None
    entries = await asyncio.to_thread(service.catalog.entries)
    tags = await asyncio.to_thread(lambda: [_tag(entry) for entry in entries if entry.recipe])
    return Tags(models=[Tag(**tag) for tag in tags if tag])


@router.get("/api/ps", summary="Models in memory", responses=ERROR_RESPONSES)
async def get_ps(request: Request) -> RunningModels:
    """With when each will be unloaded, if nobody asks for it again."""
    service: Service = request.app.state.service
    service.admit()
    assert service.catalog is not None
    assert service.residents is not None
    residents = {resident.name: resident for resident in service.residents.resident()}
    entries = await asyncio.to_thread(service.catalog.entries)
    loop_now, now = asyncio.get_running_loop().time(), datetime.now(timezone.utc).timestamp()
    running = []
    for entry in entries:
        resident = residents.get(entry.folder.name)
        if resident is None or entry.recipe is None:
            continue
        tag = await asyncio.to_thread(_tag, entry, resident.num_bytes)
        if tag is None or resident.model is None:  # it may have been unloaded meanwhile
            continue
        expires = resident.expires_at
        running.append(
            Running(
                **tag,
                expires_at=_FOR_EVER if expires is None else _iso(now + expires - loop_now),
                size_vram=0 if _on_cpu(resident.model) else resident.num_bytes,
                context_length=entry.recipe.max_length,
            )
        )
    return RunningModels(models=running)


def _tag(entry: Entry, num_bytes: int | None = None) -> dict[str, Any] | None:
    """None when the weights are damaged or the folder has just gone."""
    try:
        return _read_tag(entry, num_bytes)
    except (ModelError, OSError):
        return None


def _read_tag(entry: Entry, num_bytes: int | None) -> dict[str, Any]:
    """Blocking: reads the weights' headers. `num_bytes` in memory, else those on disk."""
    assert entry.recipe is not None
    path, family = entry.folder.path, entry.recipe.family
    size = _bytes_on_disk(path) if num_bytes is None else num_bytes
    modified = (path / "config.json").stat().st_mtime
    name = f"{entry.folder.name}:latest"
    details = {
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": f"{num_values(path) / 1e6:.0f}M",
        "quantization_level": "F32",
    }
    digest = hashlib.sha256(f"{name} {size} {modified}".encode()).hexdigest()
    return {
        "name": name,
        "model": name,
        "modified_at": _iso(modified),
        "size": size,
        "digest": digest,
        "details": details,
    }


def _bytes_on_disk(folder: Path) -> int:
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return sum(path.stat().st_size for path in weights)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def _on_cpu(model: Any) -> bool:
    return str(model.describe().get("device", "cpu")).startswith("cpu")
