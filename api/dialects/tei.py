"""text-embeddings-inference's dialect: /embed, /embed_sparse, /embed_all, /similarity, its form of
/rerank. Errors: `{"error", "error_type"}`, 422 for what is invalid.

Reads and writes that dialect and nothing more. Source: huggingface.github.io/
text-embeddings-inference (its OpenAPI).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from api.dialects.fields import Body, Side, WholeNumber
from api.dialects.inputs import read_inputs
from api.http import schema, writing
from api.http.body import check, read_request
from api.http.errors import BadRequest
from api.http.writing import off_loop
from serving.embedding import Answered, Form, embed_views, views_of
from serving.scoring import ScoreRequest, score_by_name
from serving.server import Service
from serving.texts import EmbedRequest, PromptChoice, check_texts
from settings import Settings

router = APIRouter(tags=["text-embeddings-inference"])


class _TEIBody(Body):
    truncate: bool | None = Field(None, description="false: a text too long is an error")
    truncation_direction: Side = Field(None, description="which end is cut off; default right")
    prompt_name: str | None = Field(None, description="a prompt of the model, by its name")


class InputsBody(_TEIBody):
    """POST /embed_sparse and /embed_all"""

    inputs: Any = Field(
        None, description="a text or a list of texts; token ids if the server accepts them"
    )


class EmbedBody(InputsBody):
    """POST /embed"""

    normalize: bool | None = Field(None, description="default true: L2")
    dimensions: WholeNumber | None = Field(
        None, description="cut vectors to this many values, from 1 to the model's"
    )


_INPUTS = {"one_text": {"inputs": "why is the sky blue?"}, "two": {"inputs": ["a", "b"]}}


@router.post(
    "/embed",
    summary="Embed texts",
    responses=schema.gives(list[list[float]], [[0.0101, -0.0017, 0.0541]], "tei"),
    openapi_extra=schema.takes(EmbedBody, **_INPUTS),
)
async def post_embed(request: Request) -> Response:
    """A vector a text, in input order."""
    body = await _read(request, EmbedBody)
    form = Form(dimensions=body.dimensions, normalize=body.normalize is not False)
    answered = await _embed(request, body, form)
    return await _respond(answered.views["dense"], answered)


class SparseValue(BaseModel):
    """A token id and its weight."""

    index: int
    value: float


@router.post(
    "/embed_sparse",
    summary="Lexical weights of texts, for models that have them, such as bge-m3",
    responses=schema.gives(list[list[SparseValue]], [[{"index": 831, "value": 0.19}]], "tei"),
    openapi_extra=schema.takes(InputsBody, **_INPUTS),
)
async def post_embed_sparse(request: Request) -> Response:
    """Token ids with their weights, a list a text."""
    body = await _read(request, InputsBody)
    answered = await _embed(request, body, Form(("sparse",)))
    texts = answered.views["sparse"]
    lists = await off_loop(lambda: [_pairs(weights) for weights in texts], answered.num_tokens)
    return await _respond(lists, answered)


def _pairs(weights: dict[str, np.float32]) -> list[dict[str, Any]]:
    return [{"index": int(token_id), "value": value} for token_id, value in weights.items()]


@router.post(
    "/embed_all",
    summary="A vector for every token",
    responses=schema.gives(list[list[list[float]]], [[[0.0101, -0.0017, 0.0541]]], "tei"),
    openapi_extra=schema.takes(InputsBody, **_INPUTS),
)
async def post_embed_all(request: Request) -> Response:
    """The ColBERT vectors of a model that has them, else the last hidden states of all tokens."""
    service: Service = request.app.state.service
    body = await _read(request, InputsBody)
    recipe = (await service.entry(body.model)).recipe
    output = "colbert" if recipe is not None and "colbert" in recipe.views else "tokens"
    answered = await _embed(request, body, Form((output,)))
    return await _respond(answered.views[output], answered)


async def _read(request: Request, kind: Any) -> Any:
    service: Service = request.app.state.service
    return await read_request(request, kind, service.admit().max_body_bytes)


async def _embed(request: Request, body: InputsBody, form: Form) -> Answered:
    service: Service = request.app.state.service
    inputs = read_inputs(body.inputs, "inputs", service.admit())
    wanted = EmbedRequest(
        inputs.texts,
        token_ids=inputs.token_ids,
        truncate=body.truncate is not False,
        truncation_side=body.truncation_direction or "right",
        views=views_of(form.outputs),
        prompt=PromptChoice(body.prompt_name or None),
    )
    folder = service.find(body.model)
    return await embed_views(service, request, folder, wanted, form, body.keep_alive)


async def _respond(answer: Any, answered: Answered) -> Response:
    content = await writing.write(answer)
    return Response(content, 200, answered.headers(), "application/json")


class SimilarityInputs(BaseModel):
    """One text and those to compare it with."""

    source_sentence: str
    sentences: list[Any]


class SimilarityParameters(BaseModel):
    """How texts are read."""

    truncate: bool | None = None
    truncation_direction: Side = None
    prompt_name: str | None = None


class SimilarityBody(Body):
    """POST /similarity"""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


@router.post(
    "/similarity",
    summary="Cosine similarity of one text to others",
    responses=schema.gives(list[float], [0.81, 0.12], "tei"),
    openapi_extra=schema.takes(
        SimilarityBody,
        two={"inputs": {"source_sentence": "a panda", "sentences": ["a bear", "a city"]}},
    ),
)
async def post_similarity(request: Request) -> Response:
    """One number a sentence, in order."""
    service: Service = request.app.state.service
    settings = service.admit()
    body: SimilarityBody = await _read(request, SimilarityBody)
    texts = [body.inputs.source_sentence, *body.inputs.sentences]
    if len(texts) == 1:
        raise BadRequest("inputs.sentences must not be empty", "inputs")
    check_texts(texts[:1], 1, "inputs.source_sentence")
    check_texts(texts[1:], settings.max_inputs, "inputs.sentences")
    asked = body.parameters or SimilarityParameters()
    wanted = EmbedRequest(
        texts,
        truncate=asked.truncate is not False,
        truncation_side=asked.truncation_direction or "right",
        prompt=PromptChoice(asked.prompt_name or None),
    )
    folder = service.find(body.model)
    answered = await embed_views(service, request, folder, wanted, Form(), body.keep_alive)
    rows = answered.views["dense"]
    return await _respond(np.ascontiguousarray(rows[1:] @ rows[0]), answered)


class RerankBody(Body):
    """POST /rerank with `texts`"""

    query: str
    texts: list[Any]
    raw_scores: bool | None = None
    return_text: bool | None = None
    truncate: bool | None = None
    truncation_direction: Side = None


class Rank(BaseModel):
    """A text's place in `texts` and its relevance."""

    index: int
    score: float
    text: str | None = None


async def rerank(
    request: Request, service: Service, settings: Settings, value: dict[str, Any]
) -> Response:
    """Best first. Called by the route in api/dialects/rerank.py."""
    body = check(value, RerankBody)
    check_texts(body.texts, settings.max_inputs, "texts")
    wanted = ScoreRequest(
        [(body.query, text) for text in body.texts],
        truncate=body.truncate is not False,
        truncation_side=body.truncation_direction or "right",
    )
    _, scored = await score_by_name(service, request, body.model, wanted, body.keep_alive)
    ranks: list[dict[str, Any]] = []
    for index, relevance in scored.best(None, bool(body.raw_scores)):
        rank: dict[str, Any] = {"index": index, "score": relevance}
        ranks.append(rank | ({"text": body.texts[index]} if body.return_text else {}))
    content = await writing.write(ranks)
    return Response(content, 200, scored.cost.headers(), "application/json")
