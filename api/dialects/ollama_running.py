"""Ollama's routes for models in memory: GET /api/ps, and POST /api/generate, which loads and
unloads and generates nothing."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from api.dialects.fields import Body
from api.dialects.ollama_models import TAG, Tag, iso, tag_of
from api.http import schema
from api.http.body import read_request
from api.http.errors import BadRequest
from serving.server import Service

router = APIRouter(tags=["Ollama"])

_FOR_EVER = "9999-12-31T23:59:59Z"


class Running(Tag):
    """A model in memory."""

    expires_at: str
    size_vram: int
    context_length: int


class RunningModels(BaseModel):
    """200 of GET /api/ps"""

    models: list[Running]


_RUNNING = {**TAG, "expires_at": _FOR_EVER, "size_vram": 0, "context_length": 8192}


@router.get(
    "/api/ps",
    summary="Models in memory",
    responses=schema.gives(RunningModels, {"models": [_RUNNING]}, "ollama"),
)
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
        tag = await asyncio.to_thread(tag_of, entry, resident.num_bytes)
        if tag is None or resident.model is None:  # it may have been unloaded meanwhile
            continue
        expires = resident.expires_at
        running.append(
            Running(
                **tag,
                expires_at=_FOR_EVER if expires is None else iso(now + expires - loop_now),
                size_vram=0 if _on_cpu(resident.model) else resident.num_bytes,
                context_length=entry.recipe.max_length,
            )
        )
    return RunningModels(models=running)


class GenerateBody(Body):
    """POST /api/generate, as Ollama's clients call it to load or unload a model."""

    prompt: str | None = None


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
    responses=schema.gives(
        Generated,
        {
            "model": "bge-m3",
            "created_at": "2026-11-21T09:00:00+00:00",
            "response": "",
            "done": True,
            "done_reason": "load",
        },
        "ollama",
    ),
    openapi_extra=schema.takes(GenerateBody, load={"keep_alive": "10m"}),
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
    created = iso(datetime.now(timezone.utc).timestamp())
    return Generated(
        model=body.model or folder.name,
        created_at=created,
        response="",
        done=True,
        done_reason=done_reason,
    )


def _on_cpu(model: Any) -> bool:
    return str(model.describe().get("device", "cpu")).startswith("cpu")
