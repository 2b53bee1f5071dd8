"""Ollama's dialect: POST /api/embed, /api/embeddings and /api/rerank. Errors: `{"error": "text"}`.

Reads and writes that dialect and nothing more; the work is in serving/embedding.py and
serving/scoring.py.
"""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.dialects.fields import Answer, Body, EncodingFormat, Outputs, PromptFields, WholeNumber
from api.http.body import begin, respond
from api.http.routes import Routes
from serving.embedding import EmbedRequest, PromptChoice, embed
from serving.errors import InvalidRequest
from serving.scoring import ScoreRequest, score

routes = Routes("Ollama", "ollama")


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


class EmbedAnswer(Answer):
    """200 of POST /api/embed; durations in nanoseconds."""

    model: str = Field(examples=["bge-m3"])
    embeddings: list[list[float]] | list[str] | None = Field(
        None, examples=[[[0.0101, -0.0017, 0.0541]]]
    )
    sparse: list[dict[str, float]] | None = None
    colbert: list[list[list[float]]] | list[list[str]] | None = None
    total_duration: int = Field(examples=[14143917])
    load_duration: int = Field(examples=[1019500])
    prompt_eval_count: int | None = Field(None, examples=[8])


@routes.post(
    "/api/embed",
    summary="Embed texts",
    takes=EmbedBody,
    examples={
        "one_text": {"input": "why is the sky blue?"},
        "many_texts": {"input": ["why is the sky blue?", "hello"], "dimensions": 256},
    },
    gives=EmbedAnswer,
    example=EmbedAnswer.example(),
)
async def post_embed(request: Request) -> Response:
    """Vectors of one or many texts, L2-normalised, in input order."""
    start = time.perf_counter_ns()
    call, body = await begin(request, EmbedBody)
    wanted = EmbedRequest(
        _texts(body.input),
        truncate=body.truncate is not False,
        max_length=body.max_length(),
        prompt=PromptChoice(body.prompt_name, body.input_type, body.instruction, body.task),
        outputs=tuple(body.outputs or ["dense"]),
        dimensions=body.dimensions,
        strict=False,
        as_base64=body.encoding_format == "base64",
        sparse_as_text=body.sparse_keys == "text",
        keep_alive_s=body.keep_alive,
    )
    embedded = await embed(call, body.model, wanted)
    answer: dict[str, Any] = {"model": embedded.model}
    answer |= {_FIELDS[output]: value for output, value in embedded.outputs.items()}
    answer["load_duration"] = int(embedded.load_s * 1e9)
    answer["total_duration"] = time.perf_counter_ns() - start
    if embedded.cost is not None:
        answer["prompt_eval_count"] = embedded.num_tokens
    return await respond(answer, embedded.cost)


_FIELDS = {"dense": "embeddings", "sparse": "sparse", "colbert": "colbert"}


def _texts(value: Any) -> list[Any]:
    """Empty for what only loads the model: absent, null, an empty string or list."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return value
    raise InvalidRequest("invalid input type: input must be a string or a list of strings")


class EmbeddingsBody(_OllamaBody):
    """POST /api/embeddings, which Ollama had before /api/embed."""

    prompt: str | None = None


class EmbeddingsAnswer(Answer):
    """200 of POST /api/embeddings"""

    embedding: list[float] = Field(examples=[[0.5671, -0.0924, 3.041]])


@routes.post(
    "/api/embeddings",
    summary="Embed one text, not normalised; Ollama's older call",
    takes=EmbeddingsBody,
    examples={"one_text": {"prompt": "why is the sky blue?"}},
    gives=EmbeddingsAnswer,
    example=EmbeddingsAnswer.example(),
)
async def post_embeddings(request: Request) -> Response:
    """The vector as pooled; none for an empty prompt, which only loads the model."""
    call, body = await begin(request, EmbeddingsBody)
    wanted = EmbedRequest(
        [body.prompt] if body.prompt else [],
        truncate=body.truncate is not False,
        max_length=body.max_length(),
        normalize=False,
        keep_alive_s=body.keep_alive,
    )
    embedded = await embed(call, body.model, wanted)
    rows = embedded.outputs["dense"]
    return await respond({"embedding": rows[0] if len(rows) else []}, embedded.cost)


class RerankBody(Body):
    """POST /api/rerank"""

    query: str
    documents: list[Any] = Field(description="texts")
    top_n: WholeNumber | None = Field(None, description="the best so many; all when absent or 0")
    instruction: str | None = Field(None, description="the task, for models that take one")


class RerankResult(Answer):
    """One document's place in `documents` and its relevance."""

    index: int = Field(examples=[0])
    relevance_score: float = Field(examples=[0.98])


class RerankAnswer(Answer):
    """200 of POST /api/rerank, best first."""

    model: str = Field(examples=["bge-reranker-v2-m3"])
    results: list[RerankResult] = Field(examples=[[RerankResult.example()]])


@routes.post(
    "/api/rerank",
    summary="Order documents by relevance to a query",
    takes=RerankBody,
    examples={"panda": {"query": "what is a panda?", "documents": ["a bear", "a city"]}},
    gives=RerankAnswer,
    example=RerankAnswer.example(),
)
async def post_rerank(request: Request) -> Response:
    """Scores from 0 to 1 by a reranker, cosine by an embedder; best first, stable on ties."""
    call, body = await begin(request, RerankBody)
    wanted = ScoreRequest(
        [body.query],
        body.documents,
        instruction=body.instruction or None,
        keep_alive_s=body.keep_alive,
    )
    scored = await score(call, body.model, wanted)
    results = [
        {"index": index, "relevance_score": value}
        for index, value in scored.best(body.top_n, raw=False)
    ]
    return await respond({"model": scored.model, "results": results}, scored.cost)
