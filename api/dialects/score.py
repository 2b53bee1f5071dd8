"""POST /score, as vLLM has it, with and without /v1: one score a pair of texts.

Reads and writes that dialect and nothing more; the work is in serving/scoring.py.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from api.dialects.fields import Usage, usage
from api.dialects.rerank import RelevanceBody, text_of
from api.http import schema, writing
from api.http.body import read_request
from api.http.errors import BadRequest
from serving.scoring import ScoreRequest, score_by_name
from serving.server import Service
from serving.texts import check_texts

router = APIRouter(tags=["Rerank and score"])


class ScoreBody(RelevanceBody):
    """POST /score: two sides, each a text or a list, under one of four pairs of names."""

    text_1: Any = None
    text_2: Any = None
    queries: Any = None
    documents: Any = None
    items: Any = None
    data_1: Any = None
    data_2: Any = None


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


_SCORED = {
    "id": "score-5c1f",
    "object": "list",
    "created": 1795000000,
    "model": "bge-reranker-v2-m3",
    "data": [{"index": 0, "object": "score", "score": 0.98}],
    "usage": {"prompt_tokens": 18, "total_tokens": 18},
}


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
        truncate=body.truncate is not False,
        max_length=body.max_length(),
        truncation_side=body.truncation_side or "right",
        instruction=body.instruction or None,
        weights=body.view_weights(),
        has_sides=body.queries is not None,
    )
    name, scored = await score_by_name(service, request, body.model, wanted, body.keep_alive)
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
        texts = (
            [text_of(item, name) for item in value]
            if isinstance(value, list)
            else [text_of(value, name)]
        )
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
