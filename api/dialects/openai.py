"""OpenAI's dialect: POST /v1/embeddings and GET /v1/models. Errors: `{"error": {…}, "detail"}`.

Reads and writes that dialect and nothing more; the work is in serving/embedding.py.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from api.dialects.fields import (
    Body,
    EncodingFormat,
    Outputs,
    PromptFields,
    TruncateFields,
    Usage,
    WholeNumber,
    usage,
)
from api.dialects.inputs import Inputs, read_inputs
from api.http import schema, writing
from api.http.body import read_request
from api.http.errors import ApiError
from serving.catalog import Entry
from serving.embedding import Answered, Form, embed_views, outputs_of, views_of
from serving.server import Service
from serving.texts import EmbedRequest

router = APIRouter(tags=["OpenAI"])


class EmbeddingsBody(Body, PromptFields, TruncateFields):
    """POST /v1/embeddings"""

    input: Any = Field(
        None, description="a text or a list of texts; token ids if the server accepts them"
    )
    encoding_format: EncodingFormat = None
    dimensions: WholeNumber | None = Field(
        None, description="cut vectors to this many values, from 1 to the model's; L2 again"
    )
    user: Any = Field(None, description="ignored")
    add_special_tokens: bool | None = Field(None, description="default true")
    outputs: Outputs = None


class EmbeddingItem(BaseModel):
    """One text's views; a view that was not asked for is absent."""

    object: str
    index: int
    embedding: list[float] | str | None = None
    sparse: dict[str, float] | None = None
    colbert: list[list[float]] | list[str] | None = None


class EmbeddingsAnswer(BaseModel):
    """200 of POST /v1/embeddings, in input order."""

    object: str
    data: list[EmbeddingItem]
    model: str
    usage: Usage
    id: str
    created: int


_EXAMPLE = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.0101, -0.0017, 0.0541]}],
    "model": "bge-m3",
    "usage": {"prompt_tokens": 8, "total_tokens": 8},
    "id": "embd-5c1f",
    "created": 1795000000,
}


@router.post("/embeddings", include_in_schema=False)
@router.post(
    "/v1/embeddings",
    summary="Embed texts; also /embeddings",
    responses=schema.gives(EmbeddingsAnswer, _EXAMPLE, "openai"),
    openapi_extra=schema.takes(
        EmbeddingsBody,
        one_text={"input": "why is the sky blue?"},
        base64={"input": ["why is the sky blue?", "hello"], "encoding_format": "base64"},
    ),
)
async def post_embeddings(request: Request) -> Response:
    """Vectors of one or many texts, L2-normalised, in input order."""
    service: Service = request.app.state.service
    settings = service.admit()
    body = await read_request(request, EmbeddingsBody, settings.max_body_bytes)
    folder = service.find(body.model)
    inputs = read_inputs(body.input, "input", settings)
    outputs = outputs_of(body.outputs)
    form = Form(outputs, body.encoding_format == "base64", body.dimensions)
    wanted = _wanted(body, inputs, outputs)
    answered = await embed_views(service, request, folder, wanted, form, body.keep_alive)
    answer = {
        "object": "list",
        "data": _items(answered, len(inputs)),
        "model": body.model or folder.name,
        "usage": usage(answered.num_tokens),
        "id": f"embd-{uuid.uuid4().hex}",
        "created": int(time.time()),
    }
    content = await writing.write(answer)
    return Response(content, 200, answered.headers(), "application/json")


def _wanted(body: EmbeddingsBody, inputs: Inputs, outputs: tuple[str, ...]) -> EmbedRequest:
    return EmbedRequest(
        inputs.texts,
        token_ids=inputs.token_ids,
        truncate=body.truncate is not False,
        max_length=body.max_length(),
        truncation_side=body.truncation_side or "right",
        add_special_tokens=body.add_special_tokens is not False,
        views=views_of(outputs),
        prompt=body.prompt_choice(),
    )


_FIELDS = {"dense": "embedding", "sparse": "sparse", "colbert": "colbert"}


def _items(answered: Answered, num_items: int) -> list[dict[str, Any]]:
    return [
        {
            "object": "embedding",
            "index": index,
            **{_FIELDS[view]: values[index] for view, values in answered.views.items()},
        }
        for index in range(num_items)
    ]


class ModelCard(BaseModel):
    """One model; `max_model_len` in tokens, `created` as Unix time."""

    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int


class ModelCards(BaseModel):
    """200 of GET /v1/models"""

    object: str
    data: list[ModelCard]


_CARD = {
    "id": "bge-m3",
    "object": "model",
    "created": 1795000000,
    "owned_by": "embedding-server",
    "max_model_len": 8192,
}


@router.get(
    "/v1/models",
    summary="Models that can be served",
    responses=schema.gives(ModelCards, {"object": "list", "data": [_CARD]}, "openai"),
)
async def get_models(request: Request) -> ModelCards:
    """Those loaded at start come first."""
    service: Service = request.app.state.service
    service.admit()
    assert service.catalog is not None
    entries = await asyncio.to_thread(service.catalog.entries)
    cards = await asyncio.to_thread(lambda: [_card(entry) for entry in entries])
    return ModelCards(object="list", data=[card for card in cards if card])


@router.get(
    "/v1/models/{model:path}",
    summary="One model",
    responses=schema.gives(ModelCard, _CARD, "openai"),
)
async def get_model(request: Request, model: str) -> ModelCard:
    """By its name, `name:latest` or a hub id."""
    service: Service = request.app.state.service
    service.admit()
    entry = await service.entry(model)
    card = await asyncio.to_thread(_card, entry)
    if card is None:
        raise ApiError(404, f"model '{model}' cannot be served: {entry.reason}", param="model")
    return card


def _card(entry: Entry) -> ModelCard | None:
    """Blocking. None for what cannot be served, or has just gone."""
    try:
        created = (entry.folder.path / "config.json").stat().st_mtime
    except OSError:
        return None
    if entry.recipe is None:
        return None
    return ModelCard(
        id=entry.folder.name,
        object="model",
        created=int(created),
        owned_by="embedding-server",
        max_model_len=entry.recipe.max_length,
    )
