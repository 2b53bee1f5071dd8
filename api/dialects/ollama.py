"""Ollama's dialect: POST /api/embed, /api/embeddings and /api/rerank. Errors: `{"error": "text"}`.

Reads and writes that dialect and nothing more; the work is in serving/embedding.py and
serving/scoring.py.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.dialects.fields import Body, EncodingFormat, Outputs, PromptFields, WholeNumber
from api.http import schema, writing
from api.http.body import read_request
from api.http.errors import BadRequest
from serving.embedding import Answered, Form, embed_views, outputs_of, views_of
from serving.scoring import ScoreRequest, score_by_name
from serving.server import Service
from serving.texts import EmbedRequest, check_texts

router = APIRouter(tags=["Ollama"])


class Options(BaseModel):
    """Ollama's model options; only `num_ctx` means anything to an embedder."""

    model_config = ConfigDict(extra="ignore")
    num_ctx: WholeNumber | None = Field(None, description="lowers the longest input, in tokens")


class _OllamaBody(Body):
    truncate: bool | None = Field(None, description="false: a text too long is an error")
    options: Options | None = None

    def max_length(self) -> int | None:
        num_ctx = self.options.num_ctx if self.options else None
        return num_ctx if num_ctx and num_ctx > 0 else None


class EmbedBody(_OllamaBody, PromptFields):
    """POST /api/embed"""

    input: Any = Field(None, description="a text or a list of texts")
    encoding_format: EncodingFormat = None
    dimensions: WholeNumber | None = Field(
        None,
        description="cut vectors to this many values, L2 again; ignored out of range",
    )
    outputs: Outputs = None
    sparse_keys: Literal["id", "text"] | None = Field(
        None, description="keys of sparse weights: token ids (default) or the tokens' texts"
    )


class EmbedAnswer(BaseModel):
    """200 of POST /api/embed; durations in nanoseconds."""

    model: str
    embeddings: list[list[float]] | list[str] | None = None
    sparse: list[dict[str, float]] | None = None
    colbert: list[list[list[float]]] | list[list[str]] | None = None
    total_duration: int
    load_duration: int
    prompt_eval_count: int | None = None


_DURATIONS = {"total_duration": 14143917, "load_duration": 1019500}


@router.post(
    "/api/embed",
    summary="Embed texts",
    responses=schema.gives(
        EmbedAnswer,
        {
            "model": "bge-m3",
            "embeddings": [[0.0101, -0.0017, 0.0541]],
            **_DURATIONS,
            "prompt_eval_count": 8,
        },
        "ollama",
    ),
    openapi_extra=schema.takes(
        EmbedBody,
        one_text={"input": "why is the sky blue?"},
        many_texts={"input": ["why is the sky blue?", "hello"], "dimensions": 256},
    ),
)
async def post_embed(request: Request) -> Response:
    """Vectors of one or many texts, L2-normalised, in input order."""
    start = time.perf_counter_ns()
    service: Service = request.app.state.service
    settings = service.admit()
    body = await read_request(request, EmbedBody, settings.max_body_bytes)
    folder = service.find(body.model)
    texts = _texts(body.input)
    check_texts(texts, settings.max_inputs, "input")
    outputs = outputs_of(body.outputs)
    form = Form(
        outputs,
        as_base64=body.encoding_format == "base64",
        dimensions=body.dimensions,
        strict=False,
        sparse_as_text=body.sparse_keys == "text",
    )
    answered = await embed_views(
        service, request, folder, _wanted(body, texts, outputs), form, body.keep_alive
    )
    answer: dict[str, Any] = {"model": body.model or folder.name}
    answer |= {_FIELDS[view]: value for view, value in answered.views.items()}
    answer |= _durations(answered, start)
    content = await writing.write(answer)
    return Response(content, 200, answered.headers(), "application/json")


_FIELDS = {"dense": "embeddings", "sparse": "sparse", "colbert": "colbert"}


def _wanted(body: EmbedBody, texts: list[Any], outputs: tuple[str, ...]) -> EmbedRequest:
    return EmbedRequest(
        texts,
        truncate=body.truncate is not False,
        max_length=body.max_length(),
        views=views_of(outputs),
        prompt=body.prompt_choice(),
    )


def _durations(answered: Answered, start_ns: int) -> dict[str, int]:
    times = {
        "load_duration": int(answered.load_s * 1e9),
        "total_duration": time.perf_counter_ns() - start_ns,
    }
    return times | ({"prompt_eval_count": answered.num_tokens} if answered.cost else {})


def _texts(value: Any) -> list[Any]:
    """Empty for what only loads the model: absent, null, an empty string or list."""
    if value is None or value == "" or value == []:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return value
    raise BadRequest("invalid input type: input must be a string or a list of strings")


class EmbeddingsBody(_OllamaBody):
    """POST /api/embeddings, which Ollama had before /api/embed."""

    prompt: str | None = None


class EmbeddingsAnswer(BaseModel):
    """200 of POST /api/embeddings"""

    embedding: list[float]


@router.post(
    "/api/embeddings",
    summary="Embed one text, not normalised; Ollama's older call",
    responses=schema.gives(EmbeddingsAnswer, {"embedding": [0.5671, -0.0924, 3.041]}, "ollama"),
    openapi_extra=schema.takes(EmbeddingsBody, one_text={"prompt": "why is the sky blue?"}),
)
async def post_embeddings(request: Request) -> Response:
    """The vector as pooled; none for an empty prompt, which only loads the model."""
    service: Service = request.app.state.service
    settings = service.admit()
    body = await read_request(request, EmbeddingsBody, settings.max_body_bytes)
    folder = service.find(body.model)
    wanted = EmbedRequest(
        [body.prompt] if body.prompt else [],
        truncate=body.truncate is not False,
        max_length=body.max_length(),
    )
    form = Form(normalize=False)
    answered = await embed_views(service, request, folder, wanted, form, body.keep_alive)
    rows = answered.views["dense"]
    content = writing.dumps({"embedding": rows[0] if len(rows) else []})
    return Response(content, 200, answered.headers(), "application/json")


class RerankBody(Body):
    """POST /api/rerank"""

    query: str
    documents: list[Any] = Field(description="texts")
    top_n: WholeNumber | None = Field(None, description="the best so many; all when absent or 0")
    instruction: str | None = Field(None, description="the task, for models that take one")


class RerankResult(BaseModel):
    """One document's place in `documents` and its relevance."""

    index: int
    relevance_score: float


class RerankAnswer(BaseModel):
    """200 of POST /api/rerank, best first."""

    model: str
    results: list[RerankResult]


@router.post(
    "/api/rerank",
    summary="Order documents by relevance to a query",
    responses=schema.gives(
        RerankAnswer,
        {"model": "bge-reranker-v2-m3", "results": [{"index": 0, "relevance_score": 0.98}]},
        "ollama",
    ),
    openapi_extra=schema.takes(
        RerankBody, panda={"query": "what is a panda?", "documents": ["a bear", "a city"]}
    ),
)
async def post_rerank(request: Request) -> Response:
    """Scores from 0 to 1 by a reranker, cosine by an embedder; best first, stable on ties."""
    service: Service = request.app.state.service
    settings = service.admit()
    body = await read_request(request, RerankBody, settings.max_body_bytes)
    check_texts(body.documents, settings.max_inputs, "documents")
    wanted = ScoreRequest(
        [(body.query, document) for document in body.documents],
        instruction=body.instruction or None,
    )
    name, scored = await score_by_name(service, request, body.model, wanted, body.keep_alive)
    results = [
        {"index": index, "relevance_score": value}
        for index, value in scored.best(body.top_n, raw=False)
    ]
    content = await writing.write({"model": name, "results": results})
    return Response(content, 200, scored.cost.headers(), "application/json")
