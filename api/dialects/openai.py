"""OpenAI's dialect: POST /v1/embeddings and GET /v1/models. Errors: `{"error": {…}, "detail"}`.

Reads and writes that dialect and nothing more; the work is in serving/embedding.py.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from fastapi import Request, Response
from pydantic import Field

from api.dialects.fields import (
    Answer,
    Body,
    EncodingFormat,
    Outputs,
    PromptFields,
    TruncateFields,
    Usage,
    WholeNumber,
    usage_of,
)
from api.http.body import begin, respond
from api.http.routes import Routes
from serving.embedding import Embedded, EmbedRequest, PromptChoice, embed, read_inputs
from serving.errors import NotFound
from serving.models.catalog import Entry
from serving.server import Server

routes = Routes("OpenAI", "openai")


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


class EmbeddingItem(Answer):
    """One text's outputs; one that was not asked for is absent."""

    object: str = Field(examples=["embedding"])
    index: int = Field(examples=[0])
    embedding: list[float] | str | None = Field(None, examples=[[0.0101, -0.0017, 0.0541]])
    sparse: dict[str, float] | None = None
    colbert: list[list[float]] | list[str] | None = None


class EmbeddingsAnswer(Answer):
    """200 of POST /v1/embeddings, in input order."""

    object: str = Field(examples=["list"])
    data: list[EmbeddingItem] = Field(examples=[[EmbeddingItem.example()]])
    model: str = Field(examples=["bge-m3"])
    usage: Usage = Field(examples=[Usage.example()])
    id: str = Field(examples=["embd-5c1f"])
    created: int = Field(examples=[1795000000])


@routes.post(
    "/v1/embeddings",
    "/embeddings",
    summary="Embed texts; also /embeddings",
    takes=EmbeddingsBody,
    examples={
        "one_text": {"input": "why is the sky blue?"},
        "base64": {"input": ["why is the sky blue?", "hello"], "encoding_format": "base64"},
    },
    gives=EmbeddingsAnswer,
    example=EmbeddingsAnswer.example(),
)
async def post_embeddings(request: Request) -> Response:
    """Vectors of one or many texts, L2-normalised, in input order."""
    call, body = await begin(request, EmbeddingsBody)
    texts, token_ids = read_inputs(body.input, "input", call.serving.settings)
    wanted = EmbedRequest(
        texts,
        token_ids=token_ids,
        truncate=body.truncate is not False,
        truncation_side=body.truncation_side or "right",
        max_length=body.truncate_prompt_tokens,
        add_special_tokens=body.add_special_tokens is not False,
        prompt=PromptChoice(body.prompt_name, body.input_type, body.instruction, body.task),
        outputs=tuple(body.outputs or ["dense"]),
        dimensions=body.dimensions,
        as_base64=body.encoding_format == "base64",
        keep_alive_s=body.keep_alive,
    )
    embedded = await embed(call, body.model, wanted)
    answer = {
        "object": "list",
        "data": _items(embedded, len(texts if token_ids is None else token_ids)),
        "model": embedded.model,
        "usage": usage_of(embedded.num_tokens),
        "id": f"embd-{uuid.uuid4().hex}",
        "created": int(time.time()),
    }
    return await respond(answer, embedded.cost)


_FIELDS = {"dense": "embedding", "sparse": "sparse", "colbert": "colbert"}


def _items(embedded: Embedded, num_items: int) -> list[dict[str, Any]]:
    return [
        {
            "object": "embedding",
            "index": index,
            **{_FIELDS[output]: values[index] for output, values in embedded.outputs.items()},
        }
        for index in range(num_items)
    ]


class ModelCard(Answer):
    """One model; `max_model_len` in tokens, `created` as Unix time."""

    id: str = Field(examples=["bge-m3"])
    object: str = Field(examples=["model"])
    created: int = Field(examples=[1795000000])
    owned_by: str = Field(examples=["embedding-server"])
    max_model_len: int = Field(examples=[8192])


class ModelCards(Answer):
    """200 of GET /v1/models"""

    object: str = Field(examples=["list"])
    data: list[ModelCard] = Field(examples=[[ModelCard.example()]])


@routes.get(
    "/v1/models",
    summary="Models that can be served",
    gives=ModelCards,
    example=ModelCards.example(),
)
async def get_models(request: Request) -> ModelCards:
    """Those loaded at start come first."""
    server: Server = request.app.state.server
    entries = await asyncio.to_thread(server.serving.catalog.entries)
    cards = await asyncio.to_thread(lambda: [_card(entry) for entry in entries])
    return ModelCards(object="list", data=[card for card in cards if card])


@routes.get(
    "/v1/models/{model:path}",
    summary="One model",
    gives=ModelCard,
    example=ModelCard.example(),
)
async def get_model(request: Request, model: str) -> ModelCard:
    """By its name, `name:latest` or a hub id."""
    server: Server = request.app.state.server
    entry = await server.serving.entry(model)
    card = await asyncio.to_thread(_card, entry)
    if card is None:
        raise NotFound(f"model '{model}' cannot be served: {entry.reason}", "model")
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
