"""POST /rerank, as vLLM, Jina and Cohere clients call it, with and without /v1, /v2.

Reads and writes and nothing more; the work is in serving/scoring.py. A request with `texts` is
text-embeddings-inference's, whose /rerank this also is.
"""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import Request, Response
from pydantic import Field

from api.dialects.fields import Answer, Body, RelevanceBody, Side, Usage, WholeNumber, usage_of
from api.http.body import check, read_object, respond
from api.http.errors import speaks
from api.http.routes import Routes
from serving.errors import InvalidRequest
from serving.scoring import Scored, ScoreRequest, score
from serving.state import Call

routes = Routes("Rerank and score", "openai")


class RerankBody(RelevanceBody):
    """POST /rerank"""

    query: str
    documents: list[Any] = Field(description='texts, or objects {"text": …}')
    top_n: WholeNumber | None = Field(None, description="the best so many; all when absent or 0")
    return_documents: bool | None = Field(None, description="default true")
    max_tokens_per_doc: WholeNumber | None = Field(None, description="documents are cut to this")


class RerankedDocument(Answer):
    """The document as it was sent."""

    text: str = Field(examples=["a bear"])


class RerankResult(Answer):
    """One document: its index in `documents`, its relevance."""

    index: int = Field(examples=[0])
    relevance_score: float = Field(examples=[0.98])
    document: RerankedDocument | None = Field(None, examples=[RerankedDocument.example()])


def _meta(num_tokens: int) -> dict[str, Any]:
    """As Cohere's and SiliconFlow's clients read it."""
    return {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": num_tokens, "output_tokens": 0},
    }


class RerankAnswer(Answer):
    """200 of POST /rerank, best first."""

    id: str = Field(examples=["rerank-5c1f"])
    model: str = Field(examples=["bge-reranker-v2-m3"])
    results: list[RerankResult] = Field(examples=[[RerankResult.example()]])
    usage: Usage = Field(examples=[Usage.example()])
    meta: dict[str, Any] = Field(examples=[_meta(18)])


class TEIRerankBody(Body):
    """POST /rerank with `texts`"""

    query: str
    texts: list[Any]
    raw_scores: bool | None = None
    return_text: bool | None = None
    truncate: bool | None = None
    truncation_direction: Side = None


class Rank(Answer):
    """A text's index in `texts` and its relevance."""

    index: int
    score: float
    text: str | None = None


@routes.post(
    "/rerank",
    "/v2/rerank",
    "/v1/rerank",
    summary="Order documents by relevance to a query; also /v1/rerank and /v2/rerank",
    takes=RerankBody,
    examples={
        "documents": {"query": "what is a panda?", "documents": ["a bear", "a city"]},
        "as_tei": {"query": "what is a panda?", "texts": ["a bear", "a city"]},
    },
    gives=RerankAnswer | list[Rank],
    example=RerankAnswer.example(),
)
async def post_rerank(request: Request) -> Response:
    """Scores from 0 to 1 by a reranker, cosine by an embedder; best first, stable on ties. With
    `texts` instead of `documents` it answers as text-embeddings-inference does."""
    call: Call = request.scope["state"]["call"]
    value = await read_object(request)
    if value.get("texts") is not None:
        if value.get("documents") is not None:
            raise InvalidRequest("give documents or texts, not both", "documents")
        speaks(request, "tei")
        return await _rank(call, check(value, TEIRerankBody))
    body = check(value, RerankBody)
    if body.max_tokens_per_doc is not None and body.max_tokens_per_doc < 1:
        raise InvalidRequest("max_tokens_per_doc must be at least 1", "max_tokens_per_doc")
    wanted = body.wanted([body.query], body.documents, max_document=body.max_tokens_per_doc)
    scored = await score(call, body.model, wanted)
    num_tokens = scored.cost.num_tokens
    answer = {
        "id": f"rerank-{uuid.uuid4().hex}",
        "model": scored.model,
        "results": _results(body, scored),
        "usage": usage_of(num_tokens),
        "meta": _meta(num_tokens),
    }
    return await respond(answer, scored.cost)


async def _rank(call: Call, body: TEIRerankBody) -> Response:
    """As text-embeddings-inference answers."""
    wanted = ScoreRequest(
        [body.query],
        body.texts,
        ("query", "texts"),
        truncate=body.truncate is not False,
        truncation_side=body.truncation_direction or "right",
        keep_alive_s=body.keep_alive,
    )
    scored = await score(call, body.model, wanted)
    ranks: list[dict[str, Any]] = []
    for index, relevance in scored.best(None, bool(body.raw_scores)):
        rank: dict[str, Any] = {"index": index, "score": relevance}
        ranks.append(rank | ({"text": body.texts[index]} if body.return_text else {}))
    return await respond(ranks, scored.cost)


def _results(body: RerankBody, scored: Scored) -> list[dict[str, Any]]:
    results = []
    for index, value in scored.best(body.top_n, body.wants_raw):
        result: dict[str, Any] = {"index": index, "relevance_score": value}
        if body.return_documents is not False:
            document = body.documents[index]
            text = document["text"] if isinstance(document, dict) else document
            result["document"] = {"text": text}
        results.append(result)
    return results
