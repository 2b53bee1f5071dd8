"""The one path that every dialect's texts take: check, tokenize, wait for the lane, collect.

Limits, cancellation and timings live here, once. A dialect makes a `EmbedRequest` and gets vectors.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from api.body import is_unicode
from api.errors import BadRequest
from api.service import Service, Serving
from batcher.futures import run_job
from batcher.job import Job


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """`max_length` lowers the model's limit for this request; tokens, special ones included."""

    texts: Sequence[str]
    truncate: bool = True
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class Embedded:
    """`rows` `[n, dim]` float32 as pooled, in input order; times in milliseconds."""

    rows: NDArray[np.float32]
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


def check_texts(texts: Sequence[Any], max_inputs: int, field: str) -> None:
    """Raises BadRequest naming the field, the limit, or the index at fault."""
    if len(texts) > max_inputs:
        raise BadRequest(f"{field} has {len(texts)} texts, the limit is {max_inputs} (max_inputs)")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise BadRequest(f"invalid input type: {field}[{index}] is not a string")
        if not is_unicode(text):
            raise BadRequest(f"{field}[{index}] is not valid Unicode: it has a lone surrogate")


async def embed(
    service: Service, serving: Serving, request: Request, wanted: EmbedRequest
) -> Embedded:
    """Vectors for texts that `check_texts` has passed. Ends early when the client leaves."""
    model, lane = serving.model, serving.lane
    max_length = min(wanted.max_length or model.max_length, model.max_length)
    start = time.perf_counter()
    async with _cancelled_when_client_leaves(request):
        tokens = await service.tokenize(model, wanted.texts, max_length, wanted.truncate)
        tokenized = time.perf_counter()
        costs = [len(t.ids) for t in tokens]
        job = Job(model.name, tokens, costs)
        await run_job(lane, job)
    return Embedded(
        rows=np.stack(job.rows),
        num_tokens=sum(costs),
        tokenization_ms=(tokenized - start) * 1e3,
        queue_ms=(job.started_at - job.queued_at) * 1e3,
        inference_ms=(job.ended_at - job.started_at) * 1e3,
    )


class ClientLeft(Exception):
    """Nobody reads the answer any more."""


@contextlib.asynccontextmanager
async def _cancelled_when_client_leaves(request: Request) -> AsyncIterator[None]:
    """Cancel the body of this block when the connection closes; then raise ClientLeft."""
    worker = asyncio.current_task()
    assert worker is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        worker.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if left:
            raise ClientLeft from None
        raise
    finally:
        watcher.cancel()
