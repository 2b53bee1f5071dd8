"""Ollama's model routes that only look: GET /api/tags, POST /api/show, GET /api/version."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime, timezone
from typing import Any

from fastapi import Request
from pydantic import Field

from api.dialects.fields import Answer, Body
from api.http.body import check, read_object
from api.http.routes import Routes
from api.version import server_version
from engine.errors import ModelError
from engine.folder.weight_files import num_values, stored_dtype, weight_bytes, weight_files
from engine.memory import format_count
from serving.errors import InvalidRequest, NotFound
from serving.models.catalog import Entry
from serving.server import Server

routes = Routes("Ollama", "ollama")


class ModelDetails(Answer):
    """`family` is transformers' model_type."""

    format: str = Field(examples=["safetensors"])
    family: str = Field(examples=["xlm-roberta"])
    families: list[str] = Field(examples=[["xlm-roberta"]])
    parameter_size: str = Field(examples=["568M"])
    quantization_level: str = Field(examples=["F32"])


class Tag(Answer):
    """One model; `size` in bytes."""

    name: str = Field(examples=["bge-m3:latest"])
    model: str = Field(examples=["bge-m3:latest"])
    modified_at: str = Field(examples=["2026-11-21T09:00:00+00:00"])
    size: int = Field(examples=[2271064456])
    digest: str = Field(examples=["9f2c"])
    details: ModelDetails = Field(examples=[ModelDetails.example()])


class Tags(Answer):
    """200 of GET /api/tags"""

    models: list[Tag] = Field(examples=[[Tag.example()]])


@routes.get(
    "/api/tags",
    summary="Models that can be served",
    gives=Tags,
    example=Tags.example(),
)
async def get_tags(request: Request) -> Tags:
    """Pinned ones first. What cannot be served is in the log and in `embedding models`."""
    server: Server = request.app.state.server
    entries = await asyncio.to_thread(server.serving.catalog.entries)
    tags = await asyncio.to_thread(lambda: [tag_of(entry) for entry in entries if entry.recipe])
    return Tags(models=[Tag(**tag) for tag in tags if tag])


class ShowBody(Body):
    """POST /api/show; `name` is what older clients call `model`."""

    name: str | None = None


_MODEL_INFO = {
    "general.architecture": "xlm-roberta",
    "general.parameter_count": 567754752,
    "xlm-roberta.context_length": 8192,
    "xlm-roberta.embedding_length": 1024,
}


class Shown(Answer):
    """200 of POST /api/show; keys of `model_info` as Ollama writes them."""

    license: str = Field(examples=[""])
    modelfile: str = Field(examples=[""])
    parameters: str = Field(examples=[""])
    template: str = Field(examples=[""])
    details: ModelDetails = Field(examples=[ModelDetails.example()])
    model_info: dict[str, Any] = Field(examples=[_MODEL_INFO])
    capabilities: list[str] = Field(examples=[["embedding"]])
    modified_at: str = Field(examples=["2026-11-21T09:00:00+00:00"])


@routes.post(
    "/api/show",
    summary="What a model is",
    takes=ShowBody,
    examples={"the_default": {}},
    gives=Shown,
    example=Shown.example(),
    computes=False,
)
async def post_show(request: Request) -> Shown:
    """Family, size, longest input, width, and whether it embeds or reranks."""
    server: Server = request.app.state.server
    serving = server.serving
    body = check(await read_object(request), ShowBody)
    entry = await serving.entry(body.model or body.name)
    if entry.recipe is None:
        raise InvalidRequest(f"model '{entry.folder.name}' cannot be served: {entry.reason}")
    shown = await asyncio.to_thread(_shown, entry)
    if shown is None:
        raise NotFound(f"model '{entry.folder.name}' not found")
    return shown


def _shown(entry: Entry) -> Shown | None:
    """Blocking."""
    tag, recipe = tag_of(entry), entry.recipe
    if tag is None or recipe is None:
        return None
    family = recipe.family
    model_info: dict[str, Any] = {
        "general.architecture": family,
        "general.basename": entry.folder.name,
        "general.parameter_count": num_values(entry.folder.path),
        f"{family}.context_length": recipe.max_length,
    }
    if not recipe.is_reranker:
        model_info[f"{family}.embedding_length"] = recipe.dim
        model_info[f"{family}.pooling"] = "+".join(recipe.pooling)
    return Shown(
        license="",
        modelfile="",
        parameters="",
        template="",
        details=tag["details"],
        model_info=model_info,
        capabilities=["rerank" if recipe.is_reranker else "embedding"],
        modified_at=tag["modified_at"],
    )


class Version(Answer):
    """200 of GET /api/version"""

    version: str = Field(examples=["0.1.0"])


@routes.get(
    "/api/version",
    summary="The server's version",
    gives=Version,
    example=Version.example(),
)
async def get_version() -> Version:
    return Version(version=server_version())


def tag_of(entry: Entry, num_bytes: int | None = None) -> dict[str, Any] | None:
    """None when the weights are damaged or the folder has just gone."""
    try:
        return _read_tag(entry, num_bytes)
    except (ModelError, OSError):
        return None


def _read_tag(entry: Entry, num_bytes: int | None) -> dict[str, Any]:
    """Blocking: reads the weights' headers. `num_bytes` in memory, else those on disk."""
    assert entry.recipe is not None
    path, family = entry.folder.path, entry.recipe.family
    on_disk, num_parameters = weight_bytes(path), num_values(path)
    modified = (path / "config.json").stat().st_mtime
    name = f"{entry.folder.name}:latest"
    details = {
        "format": "safetensors" if weight_files(path)[0].suffix == ".safetensors" else "pytorch",
        "family": family,
        "families": [family],
        "parameter_size": format_count(num_parameters),
        "quantization_level": stored_dtype(path),
    }
    digest = hashlib.sha256(f"{name} {on_disk} {modified}".encode()).hexdigest()
    return {
        "name": name,
        "model": name,
        "modified_at": iso(modified),
        "size": on_disk if num_bytes is None else num_bytes,
        "digest": digest,
        "details": details,
    }


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()
