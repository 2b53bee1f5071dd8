"""POST /score, as vLLM has it, with and without /v1: one score a pair of texts.

Reads and writes that dialect and nothing more; the work is in serving/scoring.py.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, cast

from fastapi import Request, Response
from pydantic import BaseModel

from api.dialects.fields import RelevanceBody, Usage
from api.http.body import begin, respond
from api.http.routes import Routes
from engine.outputs import Weights
from serving.errors import InvalidRequest
from serving.scoring import ScoreRequest, score

routes = Routes("Rerank and score", "openai")


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


@routes.post(
    "/score",
    "/v1/score",
    summary="Score pairs of texts; also /v1/score",
    takes=ScoreBody,
    examples={
        "one_to_many": {"text_1": "a panda", "text_2": ["a bear", "a city"]},
        "many_to_many": {"queries": ["a panda", "Paris"], "documents": ["a bear", "a city"]},
    },
    gives=ScoreAnswer,
    example=_SCORED,
)
async def post_score(request: Request) -> Response:
    """One score a pair: by a reranker, or by an embedder's cosine or hybrid score."""
    call, body = await begin(request, ScoreBody)
    fields, lefts, rights = _sides(body)
    wanted = ScoreRequest(
        lefts,
        rights,
        fields,
        truncate=body.truncate is not False,
        truncation_side=body.truncation_side or "right",
        max_length=body.truncate_prompt_tokens,
        instruction=body.instruction or None,
        weights=cast("Weights | None", body.weights),
        has_objects=True,
        has_roles=body.queries is not None,
        keep_alive_s=body.keep_alive,
    )
    scored = await score(call, body.model, wanted)
    scores = scored.scores(bool(body.raw_scores) or body.use_activation is False)
    num_tokens = scored.cost.num_tokens
    answer = {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": scored.model,
        "data": [{"index": i, "object": "score", "score": value} for i, value in enumerate(scores)],
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
    return await respond(answer, scored.cost)


def _sides(body: ScoreBody) -> tuple[tuple[str, str], list[Any], list[Any]]:
    """The pair of fields that are given, and the list in each: 1:1, 1:N or N:N."""
    given = [
        (left, right)
        for left, right in _PAIR_NAMES
        if getattr(body, left) is not None and getattr(body, right) is not None
    ]
    if len(given) != 1:
        known = ", ".join(f"{left}/{right}" for left, right in _PAIR_NAMES)
        raise InvalidRequest(f"give exactly one of {known}")
    lefts, rights = (_as_list(getattr(body, field)) for field in given[0])
    if not lefts or not rights or (len(lefts) != 1 and len(lefts) != len(rights)):
        raise InvalidRequest("Input lengths must be either 1:1, 1:N or N:N")
    return given[0], lefts, rights


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


_PAIR_NAMES = (
    ("text_1", "text_2"),
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
)
