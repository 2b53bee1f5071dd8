"""From a request's items to their rows: tokenized in parts, admitted, run as one job, collected.

Items are texts, pairs of texts, or lists of token ids; a row is what the model gives for one.
Limits and timings live here, once. Must not know what a row is made into.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from batcher.jobs import Job
from batcher.worker import Worker
from serving.errors import InvalidRequest
from serving.models.resident import Resident
from settings import Settings

if TYPE_CHECKING:
    from serving.state import Call

T = TypeVar("T")
R = TypeVar("R")


MAX_PROMPT_CHARS = 16_384  # of what goes before each text: far more than a model is trained with
_MANY = 64  # sequences whose costs are worth a thread
_INLINE_CHARS = 1_000  # some 0.3 ms
_PART_ITEMS = 64
_PART_CHARS = 64_000  # about 20 ms of one core; as many ids take less


@dataclass(frozen=True, slots=True)
class Work:
    """`tokenize` turns a part of the items, given the index of its first, into tokens.

    `num_before` characters of a prompt go before each item: they take as long as the item's own.
    """

    items: Sequence[Any]
    tokenize: Callable[[list[Any], int], Sequence[Any]]
    num_before: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request took; times in milliseconds, tokens with special ones."""

    num_tokens: int = 0
    tokenization_ms: float = 0.0
    queue_ms: float = 0.0
    inference_ms: float = 0.0


class TokenizerThread:
    """Where texts become tokens: a tokenizer serves one caller at a time.

    What takes less than a hop to the thread and back is done on the event loop, when nobody else
    is at it.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._lock = threading.Lock()

    async def in_parts(
        self,
        items: Sequence[T],
        work: Callable[[list[T], int], Sequence[R]],
        num_before: int = 0,
    ) -> AsyncIterator[Sequence[R]]:
        """`work(part, index of its first)`, one small part after the other, so that a bulk request
        lets a query pass. `num_before` characters go before each item."""
        is_little = len(items) <= _PART_ITEMS and (
            len(items) * num_before + sum(map(_length, items)) <= _INLINE_CHARS
        )
        if is_little and self._lock.acquire(blocking=False):
            try:
                rows = work(list(items), 0)
            finally:
                self._lock.release()
            yield rows
            return
        for first, part in _split(items, num_before):
            yield await self.run(partial(work, part, first))

    async def run(self, work: Callable[[], T]) -> T:
        """On the thread, however short it is."""

        def locked() -> T:
            with self._lock:
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._executor, locked)

    def stop(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


async def compute(
    call: Call, resident: Resident, works: Sequence[Work], outputs: tuple[str, ...] = ()
) -> tuple[list[Any], Cost]:
    """Rows of all works' items, one after the other, as one job.

    Raises InvalidRequest for too many tokens, and Overloaded as soon as they are more than the
    queue has room for, or cannot be done in time.
    """
    start = time.perf_counter()
    tokens = await _tokenized(call, works, outputs)
    tokenized = time.perf_counter()
    rows, job = await _run(call, resident, tokens)
    wait_s, run_s = job.started_at - job.queued_at, job.ended_at - job.started_at
    call.serving.metrics.count_job(wait_s, run_s)
    num_tokens = sum(len(each.ids) for each in tokens)
    return rows, Cost(num_tokens, (tokenized - start) * 1e3, wait_s * 1e3, run_s * 1e3)


async def _tokenized(call: Call, works: Sequence[Work], outputs: tuple[str, ...]) -> list[Any]:
    tokens: list[Any] = []
    settings = call.serving.settings
    is_wide = "colbert" in outputs or "tokens" in outputs
    num_tokens, num_items = 0, sum(len(work.items) for work in works)
    tokenizer = call.serving.tokenizer
    for work in works:
        async for part in tokenizer.in_parts(work.items, work.tokenize, work.num_before):
            tokens += part
            num_tokens += sum(len(each.ids) for each in part)
            check_num_tokens(num_tokens, settings, is_wide)
            if len(tokens) < num_items:  # the last part's are counted when the job is queued
                call.reservation.reserve(num_tokens)
    return tokens


async def _run(call: Call, resident: Resident, tokens: list[Any]) -> tuple[list[Any], Job]:
    """A row a sequence; the job computed those that the cache did not have."""
    cache, model = call.serving.row_cache, resident.model
    assert model is not None
    keys = await _computed(len(tokens), lambda: [each.key() for each in tokens])
    rows = cache.find(resident.loaded, keys) if cache else [None] * len(tokens)
    missing = [index for index, row in enumerate(rows) if row is None]
    payloads = [tokens[index] for index in missing]
    costs = alone = [len(each.ids) for each in payloads]
    if len(payloads) > 1:  # they may share a beginning
        costs = await _computed(len(payloads), lambda: list(model.costs(payloads)))
    job = Job(resident, payloads, costs, alone, [keys[index] for index in missing], missing)
    try:
        if missing:
            call.reservation.reserve(sum(costs), call.deadline.left_s() if call.deadline else None)
            await run_job(call.serving.worker, job)
    finally:
        call.reservation.release()
    for index, row in zip(missing, job.rows, strict=True):
        rows[index] = row
    if cache:
        cache.keep(resident.loaded, job.keys or (), job.rows)
    return rows, job


async def run_job(worker: Worker, job: Job) -> None:
    """Submit and wait. Raises the job's error; cancelling the awaiting task cancels the job.

    A job ends on the worker's thread, and either side may be gone first: a loop that is closed is
    no error for the worker.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def on_end() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(ended.set)

    job.on_end = on_end
    worker.submit(job)
    try:
        await ended.wait()
    except asyncio.CancelledError:
        worker.cancel(job)
        raise
    if job.error is not None:
        raise job.error


async def _computed(num_sequences: int, work: Callable[[], list[T]]) -> list[T]:
    """On a thread where there are many; not the tokenizer's, where others' texts would wait."""
    return work() if num_sequences <= _MANY else await asyncio.to_thread(work)


def check_num_tokens(num_tokens: int, settings: Settings, is_wide: bool = False) -> None:
    """Of a whole request, whose answer is wide if each token has a vector in it. Raises
    InvalidRequest."""
    limits = {"max_request_tokens": settings.max_request_tokens}
    if is_wide:
        limits["max_colbert_tokens"] = settings.max_colbert_tokens
    for name, limit in limits.items():
        if num_tokens > limit:
            raise InvalidRequest(
                f"the request has {num_tokens} tokens or more, the limit is {limit} ({name})"
            )


def check_prompt(text: str | None, field: str) -> None:
    """It goes before each text. Raises InvalidRequest when it is longer than MAX_PROMPT_CHARS."""
    if text is not None and len(text) > MAX_PROMPT_CHARS:
        message = f"{field} has {len(text)} characters, the limit is {MAX_PROMPT_CHARS}"
        raise InvalidRequest(message, field)


def check_texts(texts: Sequence[Any], max_inputs: int, field: str) -> None:
    """Raises InvalidRequest naming the field, the limit, or the index at fault."""
    if len(texts) > max_inputs:
        message = f"{field} has {len(texts)} texts, the limit is {max_inputs} (max_inputs)"
        raise InvalidRequest(message, field)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidRequest(f"invalid input type: {field}[{index}] is not a string", field)
        try:
            text.encode()
        except UnicodeEncodeError:
            message = f"{field}[{index}] is not valid Unicode: it has a lone surrogate"
            raise InvalidRequest(message, field) from None


def _split(items: Sequence[T], num_before: int) -> list[tuple[int, list[T]]]:
    """Consecutive items, with the index of each part's first."""
    parts: list[tuple[int, list[T]]] = []
    num_chars = 0
    for index, item in enumerate(items):
        length = num_before + _length(item)
        if not parts or len(parts[-1][1]) == _PART_ITEMS or num_chars + length > _PART_CHARS:
            parts.append((index, []))
            num_chars = 0
        parts[-1][1].append(item)
        num_chars += length
    return parts


def _length(item: Any) -> int:
    """Characters of a text or of a pair's two, ids of a list of them."""
    is_pair = not isinstance(item, str) and len(item) > 0 and isinstance(item[0], str)
    return sum(map(len, item)) if is_pair else len(item)
