"""Pairs of texts to scores: by a reranker, or by comparing an embedder's vectors.

The same path as in serving/texts.py; a dialect makes a ScoreRequest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from api.http.errors import BadRequest
from engine.tokens import PairLimits, Side
from engine.views import Weights, hybrid_score
from serving.server import Embedder, Reranker, Service, Serving, TokenIds
from serving.texts import Cost, EmbedRequest, Work, check_embeds, run, tokenizer_of


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """(query, document) pairs. `weights` are for models that compare vectors.

    `has_sides` says that the pairs are queries and documents, which take their own prompts there.
    """

    pairs: Sequence[tuple[str, str]]
    truncate: bool = True
    max_length: int | None = None
    max_document: int | None = None
    instruction: str | None = None
    weights: Weights | None = None
    has_sides: bool = True
    truncation_side: Side = "right"


@dataclass(frozen=True, slots=True)
class Scored:
    """`raw` `[n]` in the pairs' order. `is_logit`: a sigmoid makes relevance of it; else it is a
    similarity of vectors, which needs none."""

    raw: NDArray[np.float32]
    is_logit: bool
    cost: Cost

    def scores(self, raw: bool) -> NDArray[np.float32]:
        if raw or not self.is_logit:
            return self.raw
        logits = np.clip(self.raw.astype(np.float64), -700, 700)
        return (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)

    def best(self, top_n: int | None, raw: bool) -> list[tuple[int, np.float32]]:
        """(index, score), highest first, stable on ties; all unless `top_n` is above 0."""
        scores = self.scores(raw)
        order = np.argsort(-self.raw, kind="stable").tolist()  # many a sigmoid rounds to 1
        return [(i, scores[i]) for i in (order[:top_n] if top_n and top_n > 0 else order)]


async def score_by_name(
    service: Service,
    request: Request,
    asked: str | None,
    wanted: ScoreRequest,
    keep_alive_s: float | None = None,
) -> tuple[str, Scored]:
    """By the model asked for, else the default reranker; with its name as the answer tells it."""
    folder = await service.find_reranker(asked)
    async with service.lease(request, folder, keep_alive_s) as serving:
        return asked or folder.name, await score(service, serving, wanted)


async def score(service: Service, serving: Serving, wanted: ScoreRequest) -> Scored:
    """One raw score a pair. A reranker reads the two together; an embedder compares vectors."""
    if not wanted.pairs:
        return Scored(np.empty(0, dtype=np.float32), True, Cost(0, 0.0, 0.0, 0.0))
    if not serving.model.is_reranker:
        return await _score_by_vectors(service, serving, wanted)
    model: Reranker = serving.model
    if wanted.weights is not None:
        raise BadRequest(f"weights: model '{model.name}' is a reranker and has one score only")
    max_length = min(wanted.max_length or model.max_length, model.max_length)
    limits = PairLimits(max_length, wanted.truncate, wanted.max_document, wanted.truncation_side)

    def tokenize(part: list[tuple[str, str]], first: int) -> Sequence[TokenIds]:
        return model.tokenize_pairs(part, limits, wanted.instruction, first)

    rows, cost = await run(service, serving, [(wanted.pairs, tokenize)])
    return Scored(np.asarray(rows, dtype=np.float32), True, cost)


async def _score_by_vectors(service: Service, serving: Serving, wanted: ScoreRequest) -> Scored:
    """Each text is embedded once, however many pairs it is in."""
    model: Embedder = serving.model
    weights = wanted.weights or Weights()
    views = tuple(view for view in ("dense", "sparse", "colbert") if getattr(weights, view))
    check_embeds(model.name, model.is_reranker, model.views, views)
    views = ("dense", *(view for view in views if view != "dense"))
    sides: list[Work] = []
    places: list[dict[str, int]] = []
    for side, input_type in enumerate(("query", "document") if wanted.has_sides else (None, None)):
        texts = list(dict.fromkeys(pair[side] for pair in wanted.pairs))
        places.append({text: place for place, text in enumerate(texts)})
        is_document = side == 1
        asked = EmbedRequest(
            texts,
            wanted.truncate,
            wanted.max_length,
            views,
            truncation_side=wanted.truncation_side,
        )
        prompt = model.prompt(None, input_type, None if is_document else wanted.instruction)
        limit = wanted.max_document if is_document else None
        sides.append((texts, tokenizer_of(model, asked, prompt, limit)))
    rows, cost = await run(service, serving, sides, views)
    num_queries = len(places[0])

    def compare() -> NDArray[np.float32]:
        scores = {
            (q, d): hybrid_score(rows[places[0][q]], rows[num_queries + places[1][d]], weights)
            for q, d in dict.fromkeys(wanted.pairs)
        }
        return np.array([scores[pair] for pair in wanted.pairs], dtype=np.float32)

    return Scored(await asyncio.to_thread(compare), False, cost)
