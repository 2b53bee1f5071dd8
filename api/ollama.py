"""Ollama's dialect: POST /api/embed and /api/rerank. Errors are `{"error": "text"}`.

Reads and writes that dialect and nothing more; the work is in api/jobs.py and api/scoring.py.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from api import vectors
from api.body import read_request
from api.errors import ERROR_RESPONSES, BadRequest
from api.jobs import Embedded, EmbedRequest, check_before_loading, check_texts, embed
from api.scoring import ScoreRequest, score
from api.service import Service
from settings import parse_keep_alive

router = APIRouter(tags=["Ollama"])


def _refuse_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


WholeNumber = Annotated[int, BeforeValidator(_refuse_boolean)]


View = Literal["dense", "sparse", "colbert"]
KeepAlive = Annotated[float | None, BeforeValidator(parse_keep_alive)]
KEEP_ALIVE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]
}


class Options(BaseModel):
    """Ollama's model options; only `num_ctx` means anything to an embedder."""

    model_config = ConfigDict(extra="ignore")
    num_ctx: WholeNumber | None = Field(None, description="lowers the longest input, in tokens")


class EmbedBody(BaseModel):
    """POST /api/embed"""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"examples": [{"input": ["why is the sky blue?", "hello"]}]},
    )
    model: str | None = Field(None, description="the default model when absent")
    input: Any = Field(None, description="a text or a list of texts")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: each vector's little-endian float32 bytes"
    )
    truncate: bool | None = Field(None, description="false: a text too long is an error")
    dimensions: WholeNumber | None = Field(
        None,
        description="cut vectors to this many values, L2 again; ignored out of range",
    )
    options: Options | None = None
    keep_alive: KeepAlive = Field(
        None,
        description="how long the model stays after this request: seconds or a Go duration, "
        "negative for ever, 0 not at all; a model of EMBEDDING_MODEL always stays",
        json_schema_extra=KEEP_ALIVE_SCHEMA,
    )
    outputs: Annotated[list[View] | None, BeforeValidator(_as_list)] = Field(
        None, description="views wanted from the one forward; default dense alone"
    )
    sparse_keys: Literal["id", "text"] | None = Field(
        None, description="keys of sparse weights: token ids (default) or the tokens' texts"
    )
    prompt_name: str | None = Field(None, description="a prompt of the model, by its name")
    input_type: str | None = Field(
        None, description="query, document, search_query, search_document, …: the model's prompt"
    )
    instruction: str | None = Field(
        None, description="a task for queries, in the model's own frame where it has one"
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


_SCHEMA = EmbedBody.model_json_schema()
_SCHEMA["properties"]["options"]["anyOf"][0] = _SCHEMA.pop("$defs")["Options"]  # no $ref dangles


@router.post(
    "/api/embed",
    summary="Embed texts",
    responses={200: {"model": EmbedAnswer}, **ERROR_RESPONSES},
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}
    },
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
    outputs = tuple(dict.fromkeys(body.outputs or ["dense"]))
    answer: dict[str, Any] = {"model": body.model or folder.name}
    times: dict[str, int] = {}
    headers: dict[str, str] = {}
    wanted = _wanted(body, texts, outputs)
    if texts and (recipe := await service.recipe_before_loading(folder)):
        check_before_loading(folder.name, recipe, wanted)
    async with service.lease(request, folder, body.keep_alive) as serving:
        times["load_duration"] = int(serving.resident.load_s * 1e9)
        if texts:
            embedded = await embed(service, serving, wanted)
            model = serving.model
            written = partial(_answer, body, embedded, outputs, model)
            by_text = "sparse" in outputs and body.sparse_keys == "text"
            answer |= await service.on_tokenizer_thread(written) if by_text else written()
            headers = embedded.cost.headers()
            times["prompt_eval_count"] = embedded.cost.num_tokens
        else:
            answer |= {_FIELDS[view]: [] for view in outputs}
    times["total_duration"] = time.perf_counter_ns() - start
    content = await vectors.dumps_large(answer | times, "colbert" in outputs)
    return Response(content, 200, headers, "application/json")


_FIELDS = {"dense": "embeddings", "sparse": "sparse", "colbert": "colbert"}


def _wanted(body: EmbedBody, texts: list[Any], outputs: tuple[str, ...]) -> EmbedRequest:
    return EmbedRequest(
        texts,
        truncate=body.truncate is not False,
        max_length=_num_ctx(body),
        views=("dense", *(view for view in outputs if view != "dense")),
        prompt_name=body.prompt_name or None,
        input_type=body.input_type or None,
        instruction=body.instruction or None,
    )


def _answer(
    body: EmbedBody, embedded: Embedded, outputs: tuple[str, ...], model: Any
) -> dict[str, Any]:
    """The fields that hold the views asked for."""
    as_base64 = body.encoding_format == "base64"
    answer: dict[str, Any] = {}
    if "dense" in outputs:
        in_range = body.dimensions if 1 <= (body.dimensions or 0) <= model.dim else None
        rows = vectors.finish(embedded.rows, in_range)
        answer["embeddings"] = vectors.to_base64(rows) if as_base64 else rows
    if "sparse" in outputs:
        texts_of = model.token_texts if body.sparse_keys == "text" else None
        weights = (view.sparse for view in embedded.views if view.sparse is not None)
        answer["sparse"] = [vectors.to_weights(sparse, texts_of) for sparse in weights]
    if "colbert" in outputs:
        matrices = [view.colbert for view in embedded.views if view.colbert is not None]
        answer["colbert"] = [vectors.to_base64(m) for m in matrices] if as_base64 else matrices
    return answer


def _texts(value: Any) -> list[Any]:
    """Empty for what only loads the model: absent, null, an empty string or list."""
    if value is None or value == "" or value == []:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return value
    raise BadRequest("invalid input type: input must be a string or a list of strings")


def _num_ctx(body: EmbedBody) -> int | None:
    num_ctx = body.options.num_ctx if body.options else None
    return num_ctx if num_ctx and num_ctx > 0 else None


class RerankBody(BaseModel):
    """POST /api/rerank"""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [{"query": "what is a panda?", "documents": ["a bear", "a city"]}]
        },
    )
    query: str
    documents: list[Any] = Field(description="texts")
    model: str | None = Field(None, description="the default reranker when absent")
    top_n: WholeNumber | None = Field(None, description="the best so many; all when absent or 0")
    instruction: str | None = Field(None, description="the task, for models that take one")
    keep_alive: KeepAlive = Field(None, json_schema_extra=KEEP_ALIVE_SCHEMA)


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
    responses={200: {"model": RerankAnswer}, **ERROR_RESPONSES},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": RerankBody.model_json_schema()}},
        }
    },
)
async def post_rerank(request: Request) -> Response:
    """Scores from 0 to 1 by a reranker, cosine by an embedder; best first, stable on ties."""
    service: Service = request.app.state.service
    settings = service.admit()
    body = await read_request(request, RerankBody, settings.max_body_bytes)
    check_texts(body.documents, settings.max_inputs, "documents")
    folder = await service.find_reranker(body.model)
    pairs = [(body.query, document) for document in body.documents]
    results: list[dict[str, Any]] = []
    headers: dict[str, str] = {}
    async with service.lease(request, folder, body.keep_alive) as serving:
        if pairs:
            wanted = ScoreRequest(pairs, instruction=body.instruction or None)
            scored = await score(service, serving, wanted)
            results = [
                {"index": index, "relevance_score": value}
                for index, value in scored.best(body.top_n, raw=False)
            ]
            headers = scored.cost.headers()
    answer = {"model": body.model or folder.name, "results": results}
    return Response(vectors.dumps(answer), 200, headers, "application/json")
