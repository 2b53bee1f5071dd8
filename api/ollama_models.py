"""Ollama's model routes: GET /api/tags, the models there are, /api/ps, those in memory, and POST
/api/generate, which loads and unloads."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from api.body import read_request
from api.catalog import Entry
from api.errors import ERROR_RESPONSES, BadRequest
from api.ollama import KEEP_ALIVE_SCHEMA, KeepAlive
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


class GenerateBody(BaseModel):
    """POST /api/generate, as Ollama's clients call it to load or unload a model."""

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"model": "bge-m3", "keep_alive": 0}]}
    )
    model: str
    prompt: str | None = None
    keep_alive: KeepAlive = Field(None, json_schema_extra=KEEP_ALIVE_SCHEMA)


class Generated(BaseModel):
    """200 of POST /api/generate"""

    model: str
    created_at: str
    response: str
    done: bool
    done_reason: str


@router.post(
    "/api/generate",
    summary="Load a model, or with keep_alive 0 unload it; generates nothing",
    responses={200: {"model": Generated}, **ERROR_RESPONSES},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": GenerateBody.model_json_schema()}},
        }
    },
)
async def post_generate(request: Request) -> Generated:
    """A model of EMBEDDING_MODEL always stays."""
    service: Service = request.app.state.service
    settings = service.admit()
    body = await read_request(request, GenerateBody, settings.max_body_bytes)
    if body.prompt:
        raise BadRequest("prompt: this server embeds and reranks, it generates no text")
    folder = service.find(body.model)
    assert service.residents is not None
    if body.keep_alive == 0:
        await service.residents.unload(folder.name)
        done_reason = "unload"
    else:
        async with service.lease(request, folder, body.keep_alive):
            done_reason = "load"
    created = _iso(datetime.now(timezone.utc).timestamp())
    return Generated(
        model=body.model, created_at=created, response="", done=True, done_reason=done_reason
    )


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
        "format": "safetensors" if any(path.glob("*.safetensors")) else "pytorch",
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
