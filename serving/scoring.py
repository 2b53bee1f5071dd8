"""Pairs of texts to scores: by a reranker, or by comparing an embedder's outputs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.outputs import Weights, hybrid_score
from engine.text.tokens import PairLimits, Side
from serving.embedding import EmbedRequest, check_embeds, tokenizing
from serving.errors import InvalidRequest
from serving.models.resident import Resident
from serving.rows import Cost, Work, check_prompt, check_texts, compute
from serving.state import Call


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """`queries` and `documents` are 1:N or N:N, of the names that `fields` are in the request.

    With `has_objects` each may also be an object with a "text". `has_roles` says that they are
    queries and documents, which an embedder gives prompts of their own. `weights` are for models
    that compare outputs. `max_document` bounds a document's tokens.
    """

    queries: Sequence[Any]
    documents: Sequence[Any]
    fields: tuple[str, str] = ("query", "documents")
    truncate: bool = True
    truncation_side: Side = "right"
    max_length: int | None = None
    max_document: int | None = None
    instruction: str | None = None
    weights: Weights | None = None
    has_objects: bool = False
    has_roles: bool = True
    keep_alive_s: float | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRequest for an instruction that is too long to go before each pair."""
        check_prompt(self.instruction, "instruction")

    def pairs(self, max_inputs: int) -> list[tuple[str, str]]:
        """Raises InvalidRequest for what is not a text, or too many."""
        queries, documents = self._texts(0, max_inputs), self._texts(1, max_inputs)
        queries = queries if len(queries) > 1 else list(queries) * len(documents)
        return list(zip(queries, documents, strict=True))

    def _texts(self, role: int, max_inputs: int) -> Sequence[str]:
        items, field = (self.queries, self.documents)[role], self.fields[role]
        if self.has_objects and any(
            isinstance(item, dict) and "text" not in item for item in items
        ):
            message = f'{field}: each is a text, or an object with "text"'
            raise InvalidRequest(message, field)
        if self.has_objects:
            items = [item["text"] if isinstance(item, dict) else item for item in items]
        check_texts(items, max_inputs, field)
        return items


@dataclass(frozen=True, slots=True)
class Scored:
    """`raw` `[n]` in the pairs' order. `is_logit`: a sigmoid makes relevance of it; else it is a
    similarity of vectors, which needs none. `model` is as the answer tells it."""

    raw: NDArray[np.float32]
    is_logit: bool
    cost: Cost
    model: str = ""

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


async def score(call: Call, asked: str | None, wanted: ScoreRequest) -> Scored:
    """By the model asked for, else the default reranker. One raw score a pair: a reranker reads the
    two together, an embedder compares its outputs.

    Raises what `embed` raises.
    """
    pairs = wanted.pairs(call.serving.settings.max_inputs)
    folder = await call.serving.find_reranker(asked)
    async with call.lease(folder, wanted.keep_alive_s) as resident:
        model: Any = resident.model
        raw: Any = []
        cost = Cost()
        if pairs and model.is_reranker:
            raw, cost = await compute(call, resident, [_tokenizing_pairs(model, pairs, wanted)])
        elif pairs:
            raw, cost = await _compare(call, resident, pairs, wanted)
        is_logit = model.is_reranker or not pairs
        return Scored(np.asarray(raw, dtype=np.float32), is_logit, cost, asked or folder.name)


def _tokenizing_pairs(model: Any, pairs: list[tuple[str, str]], wanted: ScoreRequest) -> Work:
    if wanted.weights is not None:
        raise InvalidRequest(f"weights: model '{model.name}' is a reranker and has one score only")
    max_length = min(wanted.max_length or model.max_length, model.max_length)
    limits = PairLimits(max_length, wanted.truncate, wanted.max_document, wanted.truncation_side)

    def tokenize(part: list[tuple[str, str]], first: int) -> Sequence[Any]:
        tokens: Sequence[Any] = model.tokenize_pairs(part, limits, wanted.instruction, first)
        return tokens

    return Work(pairs, tokenize, len(wanted.instruction or ""))


async def _compare(
    call: Call, resident: Resident, pairs: list[tuple[str, str]], wanted: ScoreRequest
) -> tuple[NDArray[np.float32], Cost]:
    """Each text is embedded once, however many pairs it is in."""
    model: Any = resident.model
    weights = wanted.weights or Weights()
    outputs = tuple(name for name in ("dense", "sparse", "colbert") if getattr(weights, name))
    works: list[Work] = []
    rows_of: list[dict[str, int]] = []
    for role, input_type in enumerate(("query", "document") if wanted.has_roles else (None, None)):
        texts = list(dict.fromkeys(pair[role] for pair in pairs))
        first = sum(map(len, rows_of))
        rows_of.append({text: first + index for index, text in enumerate(texts)})
        is_document = role == 1
        asked = EmbedRequest(
            texts,
            truncate=wanted.truncate,
            truncation_side=wanted.truncation_side,
            max_length=wanted.max_length,
            outputs=outputs,
        )
        check_embeds(model.name, model, asked)
        prompt = None, input_type, None if is_document else wanted.instruction
        works.append(tokenizing(model, asked, prompt, wanted.max_document if is_document else None))
    rows, cost = await compute(call, resident, works, ("dense", *outputs))

    def compare() -> NDArray[np.float32]:
        scores = {
            (q, d): hybrid_score(rows[rows_of[0][q]], rows[rows_of[1][d]], weights)
            for q, d in dict.fromkeys(pairs)
        }
        return np.array([scores[pair] for pair in pairs], dtype=np.float32)

    return await asyncio.to_thread(compare), cost
