"""POST /rerank and /score, as vLLM, Jina and Cohere clients call them, with and without /v1, /v2.

Reads and writes that dialect and nothing more; the work is in api/scoring.py. A request with
`texts` is for api/tei.py, whose /rerank this also is.
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from api import schema, tei, writing
from api.body import check, read_object, read_request
from api.dialects import speaks
from api.errors import BadRequest
from api.fields import Body, TruncateFields, Usage, WholeNumber, usage
from api.jobs import check_texts
from api.scoring import Scored, ScoreRequest, score
from api.service import Service
from engine.views import Weights

router = APIRouter(tags=["Rerank and score"])

_MAX_WEIGHT = 1e6


class ViewWeights(BaseModel):
    """How much each view of an embedder counts; a hybrid score is their weighted mean."""

    model_config = ConfigDict(extra="forbid")
    dense: Annotated[float, Field(ge=0, le=_MAX_WEIGHT, allow_inf_nan=False)] = 0.0
    sparse: Annotated[float, Field(ge=0, le=_MAX_WEIGHT, allow_inf_nan=False)] = 0.0
    colbert: Annotated[float, Field(ge=0, le=_MAX_WEIGHT, allow_inf_nan=False)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _refuse_many_names(cls, value: Any) -> Any:
        """Each of a few is named, a million are not."""
        if isinstance(value, dict) and len(value) > len(cls.model_fields):
            raise ValueError("knows dense, sparse and colbert only")
        return value


class _Body(Body, TruncateFields):
    """What both routes take."""

    instruction: str | None = Field(None, description="the task, for models that take one")
    raw_scores: bool | None = Field(None, description="true: no sigmoid")
    use_activation: bool | None = Field(None, description="false: no sigmoid")
    weights: ViewWeights | None = Field(
        None, description="for an embedder with several outputs, such as bge-m3: hybrid score"
    )

    def is_raw(self) -> bool:
        return bool(self.raw_scores) or self.use_activation is False

    def view_weights(self) -> Weights | None:
        if self.weights is None:
            return None
        weights = Weights(self.weights.dense, self.weights.sparse, self.weights.colbert)
        if weights.dense + weights.sparse + weights.colbert == 0:
            raise BadRequest("weights: at least one of dense, sparse, colbert must be above 0")
        return weights


class RerankBody(_Body):
    """POST /rerank"""

    query: str
    documents: list[Any] = Field(description='texts, or objects {"text": …}')
    top_n: WholeNumber | None = Field(None, description="the best so many; all when absent or 0")
    return_documents: bool | None = Field(None, description="default true")
    max_tokens_per_doc: WholeNumber | None = Field(None, description="documents are cut to this")


class ScoreBody(_Body):
    """POST /score: two sides, each a text or a list, under one of four pairs of names."""

    text_1: Any = None
    text_2: Any = None
    queries: Any = None
    documents: Any = None
    items: Any = None
    data_1: Any = None
    data_2: Any = None


class RerankedDocument(BaseModel):
    """The document as it was sent."""

    text: str


class RerankResult(BaseModel):
    """One document: its place in `documents`, its relevance."""

    index: int
    relevance_score: float
    document: RerankedDocument | None = None


class RerankAnswer(BaseModel):
    """200 of POST /rerank, best first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: dict[str, Any]


class ScoreItem(BaseModel):
    """One pair's score."""

    index: int
    object: str
    score: float


class ScoreAnswer(BaseModel):
    """200 of POST /score, in the pairs' order."""

    id: str
    object: str
    created: int
    model: str
    data: list[ScoreItem]
    usage: Usage


def _meta(num_tokens: int) -> dict[str, Any]:
    """As Cohere's and SiliconFlow's clients read it."""
    return {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": num_tokens, "output_tokens": 0},
    }


_RERANKED = {
    "id": "rerank-5c1f",
    "model": "bge-reranker-v2-m3",
    "results": [{"index": 0, "relevance_score": 0.98, "document": {"text": "a bear"}}],
    "usage": {"prompt_tokens": 18, "total_tokens": 18},
    "meta": _meta(18),
}
_SCORED = {
    "id": "score-5c1f",
    "object": "list",
    "created": 1795000000,
    "model": "bge-reranker-v2-m3",
    "data": [{"index": 0, "object": "score", "score": 0.98}],
    "usage": {"prompt_tokens": 18, "total_tokens": 18},
}


@router.post("/v2/rerank", include_in_schema=False)
@router.post("/v1/rerank", include_in_schema=False)
@router.post(
    "/rerank",
    summary="Order documents by relevance to a query; also /v1/rerank and /v2/rerank",
    responses=schema.gives(RerankAnswer | list[tei.Rank], _RERANKED, "openai"),
    openapi_extra=schema.takes(
        RerankBody,
        documents={"query": "what is a panda?", "documents": ["a bear", "a city"]},
        as_tei={"query": "what is a panda?", "texts": ["a bear", "a city"]},
    ),
)
async def post_rerank(request: Request) -> Response:
    """Scores from 0 to 1 by a reranker, cosine by an embedder; best first, stable on ties. With
    `texts` instead of `documents` it answers as text-embeddings-inference does."""
    service: Service = request.app.state.service
    settings = service.admit()
    value = await read_object(request, settings.max_body_bytes)
    if value.get("texts") is not None:
        if value.get("documents") is not None:
            raise BadRequest("give documents or texts, not both", "documents")
        speaks(request, "tei")
        return await tei.rerank(request, service, settings, value)
    body = check(value, RerankBody)
    documents = [_text(document) for document in body.documents]
    check_texts(documents, settings.max_inputs, "documents")
    if body.max_tokens_per_doc is not None and body.max_tokens_per_doc < 1:
        raise BadRequest("max_tokens_per_doc must be at least 1", "max_tokens_per_doc")
    wanted = ScoreRequest(
        [(body.query, document) for document in documents],
        max_length=body.max_length(),
        max_document=body.max_tokens_per_doc,
        truncation_side=body.truncation_side or "right",
        instruction=body.instruction or None,
        weights=body.view_weights(),
    )
    name, scored = await _score(service, request, body, wanted)
    answer = {
        "id": f"rerank-{uuid.uuid4().hex}",
        "model": name,
        "results": _results(body, documents, scored),
        "usage": usage(scored.cost.num_tokens),
        "meta": _meta(scored.cost.num_tokens),
    }
    content = await writing.write(answer)
    return Response(content, 200, scored.cost.headers(), "application/json")


def _results(body: RerankBody, documents: list[Any], scored: Scored) -> list[dict[str, Any]]:
    results = []
    for index, value in scored.best(body.top_n, body.is_raw()):
        result: dict[str, Any] = {"index": index, "relevance_score": value}
        if body.return_documents is not False:
            result["document"] = {"text": documents[index]}
        results.append(result)
    return results


@router.post("/v1/score", include_in_schema=False)
@router.post(
    "/score",
    summary="Score pairs of texts; also /v1/score",
    responses=schema.gives(ScoreAnswer, _SCORED, "openai"),
    openapi_extra=schema.takes(
        ScoreBody,
        one_to_many={"text_1": "a panda", "text_2": ["a bear", "a city"]},
        many_to_many={"queries": ["a panda", "Paris"], "documents": ["a bear", "a city"]},
    ),
)
async def post_score(request: Request) -> Response:
    """One score a pair: by a reranker, or by an embedder's cosine or hybrid score."""
    service: Service = request.app.state.service
    settings = service.admit()
    body = await read_request(request, ScoreBody, settings.max_body_bytes)
    wanted = ScoreRequest(
        _pairs(body, settings.max_inputs),
        max_length=body.max_length(),
        truncation_side=body.truncation_side or "right",
        instruction=body.instruction or None,
        weights=body.view_weights(),
        has_sides=body.queries is not None,
    )
    name, scored = await _score(service, request, body, wanted)
    scores = scored.scores(body.is_raw())
    answer = {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": [{"index": i, "object": "score", "score": value} for i, value in enumerate(scores)],
        "usage": usage(scored.cost.num_tokens),
    }
    content = await writing.write(answer)
    return Response(content, 200, scored.cost.headers(), "application/json")


async def _score(
    service: Service, request: Request, body: RerankBody | ScoreBody, wanted: ScoreRequest
) -> tuple[str, Scored]:
    """The model's name as the answer tells it, and the scores."""
    folder = await service.find_reranker(body.model)
    async with service.lease(request, folder, body.keep_alive) as serving:
        return body.model or folder.name, await score(service, serving, wanted)


def _pairs(body: ScoreBody, max_inputs: int) -> list[tuple[str, str]]:
    """1:1, 1:N or N:N. Raises 400 otherwise."""
    names = _PAIR_NAMES
    given = [(left, right) for left, right in names if getattr(body, left) is not None]
    given = [pair for pair in given if getattr(body, pair[1]) is not None]
    if len(given) != 1:
        known = ", ".join(f"{left}/{right}" for left, right in names)
        raise BadRequest(f"give exactly one of {known}")
    sides = []
    for name in given[0]:
        value = getattr(body, name)
        texts = [_text(item) for item in value] if isinstance(value, list) else [_text(value)]
        check_texts(texts, max_inputs, name)
        sides.append(texts)
    lefts, rights = sides
    if not lefts or not rights or (len(lefts) != 1 and len(lefts) != len(rights)):
        raise BadRequest("Input lengths must be either 1:1, 1:N or N:N")
    return list(zip(lefts if len(lefts) > 1 else lefts * len(rights), rights, strict=True))


_PAIR_NAMES = (
    ("text_1", "text_2"),
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
)


def _text(item: Any) -> Any:
    """A text, or an object's `text`; what is neither is refused by `check_texts`."""
    return item.get("text") if isinstance(item, dict) else item
