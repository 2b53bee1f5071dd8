"""Ollama's routes for models in memory: GET /api/ps, and POST /api/generate, which loads and
unloads and generates nothing."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import Any

from fastapi import Request
from pydantic import Field

from api.dialects.fields import Answer, Body
from api.dialects.ollama_models import Tag, iso, tag_of
from api.http.body import begin
from api.http.routes import Routes
from serving.errors import InvalidRequest
from serving.server import Server

routes = Routes("Ollama", "ollama")

_FOR_EVER = "9999-12-31T23:59:59Z"


class Running(Tag):
    """A model in memory. `pinned`: it was loaded at start and stays."""

    expires_at: str = Field(examples=[_FOR_EVER])
    size_vram: int = Field(examples=[0])
    context_length: int = Field(examples=[8192])
    pinned: bool = Field(examples=[True])


class RunningModels(Answer):
    """200 of GET /api/ps"""

    models: list[Running] = Field(examples=[[Running.example()]])


@routes.get(
    "/api/ps",
    summary="Models in memory",
    gives=RunningModels,
    example=RunningModels.example(),
)
async def get_ps(request: Request) -> RunningModels:
    """With when each will be unloaded, if nobody asks for it again."""
    server: Server = request.app.state.server
    serving = server.serving
    residents = {resident.name: resident for resident in serving.residents.resident()}
    entries = await asyncio.to_thread(serving.catalog.entries)
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
                pinned=resident.pinned,
            )
        )
    return RunningModels(models=running)


class GenerateBody(Body):
    """POST /api/generate, as Ollama's clients call it to load or unload a model."""

    prompt: str | None = None


class Generated(Answer):
    """200 of POST /api/generate"""

    model: str = Field(examples=["bge-m3"])
    created_at: str = Field(examples=["2026-11-21T09:00:00+00:00"])
    response: str = Field(examples=[""])
    done: bool = Field(examples=[True])
    done_reason: str = Field(examples=["load"])


@routes.post(
    "/api/generate",
    summary="Load a model, or with keep_alive 0 unload it; generates nothing",
    takes=GenerateBody,
    examples={"load": {"keep_alive": "10m"}},
    gives=Generated,
    example=Generated.example(),
)
async def post_generate(request: Request) -> Generated:
    """A model of EMBEDDING_MODEL always stays."""
    call, body = await begin(request, GenerateBody)
    if body.prompt:
        raise InvalidRequest("prompt: this server embeds and reranks, it generates no text")
    folder = await call.serving.find(body.model)
    if body.keep_alive == 0:
        await call.serving.residents.unload(folder.name)
        done_reason = "unload"
    else:
        async with call.lease(folder, body.keep_alive):
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
