"""POST /rerank, as vLLM, Jina and Cohere clients call it, with and without /v1, /v2.

Reads and writes that dialect and nothing more; the work is in serving/scoring.py. A request with
`texts` is for api/dialects/tei.py, whose /rerank this also is.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.dialects import tei
from api.dialects.fields import Body, TruncateFields, Usage, WholeNumber, usage
from api.http import schema, writing
from api.http.body import check, read_object
from api.http.dialects import speaks
from api.http.errors import BadRequest
from engine.views import Weights
from serving.scoring import Scored, ScoreRequest, score_by_name
from serving.server import Service
from serving.texts import check_texts

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


class RelevanceBody(Body, TruncateFields):
    """What /rerank and /score both take."""

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


class RerankBody(RelevanceBody):
    """POST /rerank"""

    query: str
    documents: list[Any] = Field(description='texts, or objects {"text": …}')
    top_n: WholeNumber | None = Field(None, description="the best so many; all when absent or 0")
    return_documents: bool | None = Field(None, description="default true")
    max_tokens_per_doc: WholeNumber | None = Field(None, description="documents are cut to this")


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
    documents = [text_of(document, "documents") for document in body.documents]
    check_texts(documents, settings.max_inputs, "documents")
    if body.max_tokens_per_doc is not None and body.max_tokens_per_doc < 1:
        raise BadRequest("max_tokens_per_doc must be at least 1", "max_tokens_per_doc")
    wanted = ScoreRequest(
        [(body.query, document) for document in documents],
        truncate=body.truncate is not False,
        max_length=body.max_length(),
        max_document=body.max_tokens_per_doc,
        truncation_side=body.truncation_side or "right",
        instruction=body.instruction or None,
        weights=body.view_weights(),
    )
    name, scored = await score_by_name(service, request, body.model, wanted, body.keep_alive)
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


def text_of(item: Any, field: str) -> Any:
    """A text, or an object's `text`; what is no text is refused by `check_texts`."""
    if isinstance(item, dict) and "text" not in item:
        raise BadRequest(f'{field}: each is a text, or an object with "text"', field)
    return item["text"] if isinstance(item, dict) else item
