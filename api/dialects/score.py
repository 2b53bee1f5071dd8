"""POST /score, as vLLM has it, with and without /v1: one score a pair of texts.

Reads and writes that dialect and nothing more; the work is in serving/scoring.py.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from fastapi import Request, Response
from pydantic import Field

from api.dialects.fields import Answer, RelevanceBody, Usage, usage_of
from api.http.body import begin, respond
from api.http.routes import Routes
from serving.errors import InvalidRequest
from serving.scoring import score

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


class ScoreItem(Answer):
    """One pair's score."""

    index: int = Field(examples=[0])
    object: str = Field(examples=["score"])
    score: float = Field(examples=[0.98])


class ScoreAnswer(Answer):
    """200 of POST /score, in the pairs' order."""

    id: str = Field(examples=["score-5c1f"])
    object: str = Field(examples=["list"])
    created: int = Field(examples=[1795000000])
    model: str = Field(examples=["bge-reranker-v2-m3"])
    data: list[ScoreItem] = Field(examples=[[ScoreItem.example()]])
    usage: Usage = Field(examples=[Usage.example()])


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
    example=ScoreAnswer.example(),
)
async def post_score(request: Request) -> Response:
    """One score a pair: by a reranker, or by an embedder's cosine or hybrid score."""
    call, body = await begin(request, ScoreBody)
    fields, lefts, rights = _sides(body)
    wanted = body.wanted(lefts, rights, fields=fields, has_roles=body.queries is not None)
    scored = await score(call, body.model, wanted)
    scores = scored.scores(body.wants_raw)
    answer = {
        "id": f"score-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": scored.model,
        "data": [{"index": i, "object": "score", "score": value} for i, value in enumerate(scores)],
        "usage": usage_of(scored.cost.num_tokens),
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
