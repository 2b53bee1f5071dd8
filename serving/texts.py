"""The one path that every dialect's texts and pairs take: tokenize, wait for the lane, collect.

Limits, cancellation and timings live here, once. A dialect makes an EmbedRequest and
gets views; pairs come through serving/scoring.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from api.http.body import is_unicode
from api.http.errors import BadRequest
from batcher.futures import run_job
from batcher.job import Job
from engine.recipe import Recipe
from engine.tokens import Side, TextLimits
from engine.views import Views, dense_rows
from serving.server import Embedder, Service, Serving, TokenIds

# Items, and what turns a part of them, given the index of its first, into tokens.
Work = tuple[Sequence[Any], Callable[[list[Any], int], Sequence[TokenIds]]]

T = TypeVar("T")

_MANY = 64  # sequences whose costs are worth a thread


@dataclass(frozen=True, slots=True)
class PromptChoice:
    """What a request says of the text before its texts; at most one of the three is used."""

    prompt_name: str | None = None
    input_type: str | None = None
    instruction: str | None = None

    def given(self) -> tuple[str | None, str | None, str | None]:
        return self.prompt_name, self.input_type, self.instruction


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """`max_length` lowers the model's limit for this request; tokens, special ones included.

    `views` are among dense, sparse, colbert and tokens.
    `token_ids` are a client's own, in place of texts: nothing is put before or around them.
    """

    texts: Sequence[str] = ()
    truncate: bool = True
    max_length: int | None = None
    views: tuple[str, ...] = ("dense",)
    prompt: PromptChoice = PromptChoice()
    token_ids: Sequence[Sequence[int]] | None = None
    truncation_side: Side = "right"
    add_special_tokens: bool = True

    @property
    def inputs(self) -> Sequence[Any]:
        return self.texts if self.token_ids is None else self.token_ids


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request took; times in milliseconds, tokens with special ones."""

    num_tokens: int
    tokenization_ms: float
    queue_ms: float
    inference_ms: float

    def headers(self) -> dict[str, str]:
        return {
            "x-tokenization-time": f"{self.tokenization_ms:.2f}",
            "x-queue-time": f"{self.queue_ms:.2f}",
            "x-inference-time": f"{self.inference_ms:.2f}",
            "x-compute-tokens": str(self.num_tokens),
        }


@dataclass(frozen=True, slots=True)
class Embedded:
    """One record a text, in input order."""

    views: list[Views]
    cost: Cost

    @property
    def rows(self) -> NDArray[np.float32]:
        """`[n, dim]` float32 as pooled."""
        return dense_rows(self.views)


def check_texts(texts: Sequence[Any], max_inputs: int, field: str) -> None:
    """Raises BadRequest naming the field, the limit, or the index at fault."""
    if len(texts) > max_inputs:
        message = f"{field} has {len(texts)} texts, the limit is {max_inputs} (max_inputs)"
        raise BadRequest(message, field)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadRequest(f"invalid input type: {field}[{index}] is not a string", field)
        if not is_unicode(text):
            message = f"{field}[{index}] is not valid Unicode: it has a lone surrogate"
            raise BadRequest(message, field)


async def embed(service: Service, serving: Serving, wanted: EmbedRequest) -> Embedded:
    """Views of texts that `check_texts` has passed, or of token ids. Ends early when the client
    leaves.

    Raises 400 for a reranker, a view that the model lacks, or a prompt that it does not know.
    """
    model: Embedder = serving.model
    check_embeds(model.name, model.is_reranker, model.views, wanted.views)
    check_no_prompt(wanted)
    prompt = model.prompt(*wanted.prompt.given())
    tokenize = tokenizer_of(model, wanted, prompt)
    rows, cost = await run(service, serving, [(wanted.inputs, tokenize)], wanted.views)
    return Embedded(rows, cost)


def check_before_loading(name: str, recipe: Recipe, wanted: EmbedRequest) -> None:
    """What `embed` would refuse anyway: no model need be loaded, nor another leave, to say it."""
    check_embeds(name, recipe.is_reranker, recipe.views, wanted.views)
    check_no_prompt(wanted)
    recipe.prompts.choose(*wanted.prompt.given())


def check_embeds(name: str, is_reranker: bool, there: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises 400 for a reranker, or for a view that is not there."""
    if is_reranker:
        raise BadRequest(
            f"model '{name}' is a reranker: it scores pairs and has no vectors", "model"
        )
    missing = [view for view in wanted if view not in (*there, "tokens")]
    if missing:
        raise BadRequest(
            f"model '{name}' has no {missing[0]} output; it has: {', '.join(there)}", "outputs"
        )


def check_no_prompt(wanted: EmbedRequest) -> None:
    """Raises 400 where token ids come with what would choose a prompt."""
    for name in ("prompt_name", "input_type", "instruction"):
        if wanted.token_ids is not None and getattr(wanted.prompt, name) is not None:
            raise BadRequest(f"{name}: token ids take no prompt; send text to have one", name)


def tokenizer_of(
    model: Embedder, wanted: EmbedRequest, prompt: str, max_tokens: int | None = None
) -> Callable[[list[Any], int], Sequence[TokenIds]]:
    """Of parts of `wanted.inputs`; `prompt` goes before texts only."""
    limits = TextLimits(
        max_length=min(n for n in (wanted.max_length, max_tokens, model.max_length) if n),
        truncate=wanted.truncate or max_tokens is not None,
        side=wanted.truncation_side,
        add_special_tokens=wanted.add_special_tokens,
    )

    def tokenize(part: list[Any], first: int) -> Sequence[TokenIds]:
        if wanted.token_ids is not None:
            return model.tokens_of(part, limits, wanted.views, first)
        return model.tokenize(part, limits, prompt, wanted.views, first)

    return tokenize


async def run(
    service: Service,
    serving: Serving,
    works: Sequence[Work],
    views: tuple[str, ...] = (),
) -> tuple[list[Any], Cost]:
    """Rows of all works' items, one after the other, as one job.

    Raises Overloaded as soon as its tokens are too many for what the queue has left, or too many to
    be done in time.
    """
    start = time.perf_counter()
    tokens = await _tokenized(service, serving, works, views)
    tokenized = time.perf_counter()
    rows, job = await _rows(service, serving, tokens)
    wait_s, run_s = job.started_at - job.queued_at, job.ended_at - job.started_at
    service.metrics.count_job(wait_s, run_s)
    num_tokens = sum(len(t.ids) for t in tokens)
    return rows, Cost(num_tokens, (tokenized - start) * 1e3, wait_s * 1e3, run_s * 1e3)


async def _tokenized(
    service: Service, serving: Serving, works: Sequence[Work], views: tuple[str, ...]
) -> list[TokenIds]:
    tokens: list[TokenIds] = []
    limits = [("max_request_tokens", serving.settings.max_request_tokens)]
    if "colbert" in views or "tokens" in views:
        limits.append(("max_colbert_tokens", serving.settings.max_colbert_tokens))
    num_tokens = 0
    for items, tokenize in works:
        async for part in service.in_parts(items, tokenize):
            tokens += part
            num_tokens += sum(len(t.ids) for t in part)
            for name, limit in limits:
                if num_tokens > limit:
                    raise BadRequest(
                        f"the request has {num_tokens} tokens or more, the limit is {limit} "
                        f"({name})"
                    )
            serving.place.hold(num_tokens)
    return tokens


async def _rows(
    service: Service, serving: Serving, tokens: list[TokenIds]
) -> tuple[list[Any], Job]:
    """A row a sequence; the job computed those that the cache did not have."""
    cache, loaded = service.row_cache, serving.resident.loaded
    keys = await _computed(len(tokens), lambda: [each.key() for each in tokens])
    rows = cache.find(loaded, keys) if cache.is_on else [None] * len(tokens)
    places = [place for place, row in enumerate(rows) if row is None]
    missing = [tokens[place] for place in places]
    costs = await _computed(len(missing), lambda: list(serving.model.costs(missing)))
    alone = [len(t.ids) for t in missing]
    job = Job(serving.resident, missing, costs, alone, [keys[place] for place in places], places)
    try:
        if missing:
            serving.place.hold(sum(costs), serving.left_s)
            await run_job(serving.lane, job)
    finally:
        serving.place.release()
    for place, row in zip(places, job.rows, strict=True):
        rows[place] = row
    if cache.is_on:
        cache.keep(loaded, job.keys or (), job.rows)
    return rows, job


async def _computed(num_sequences: int, work: Callable[[], list[T]]) -> list[T]:
    """On a thread where there are many; not the tokenizer's, where others' texts would wait."""
    return work() if num_sequences <= _MANY else await asyncio.to_thread(work)
