"""Answers as JSON bytes: small ones at once, large ones on a thread and in parts.

orjson holds the interpreter's lock while it writes, so a large answer on a thread would still stop
the event loop; in parts it stops it for a part's time only (bench/serialization.py).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import orjson
from starlette.responses import Response

from serving.rows import Cost

T = TypeVar("T")

# Answers of more numbers are written on a thread, so many at a time: one to two milliseconds each,
# for which the loop stands still. Measured: bench/results/serialization.json
LARGE = 32_768


def dumps(answer: Any) -> bytes:
    """JSON in which float32 values carry their shortest round-trip digits."""
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


async def write(answer: Any) -> bytes:
    """The same; other requests go on while a large answer is written."""
    if size(answer, LARGE) <= LARGE:
        return dumps(answer)
    return await asyncio.to_thread(write_in_parts, answer)


def write_in_parts(answer: Any) -> bytes:
    """For a thread: after each part the interpreter's lock is free for whoever waits for it."""
    written = []
    for part in parts(answer):
        written.append(part)
        time.sleep(0)
    return b"".join(written)


async def respond(answer: Any, cost: Cost | None = None) -> Response:
    """200 with the answer, and in headers what it cost."""
    headers = {}
    if cost is not None:
        headers = {
            "x-tokenization-time": f"{cost.tokenization_ms:.2f}",
            "x-queue-time": f"{cost.queue_ms:.2f}",
            "x-inference-time": f"{cost.inference_ms:.2f}",
            "x-compute-tokens": str(cost.num_tokens),
        }
    return Response(await write(answer), 200, headers, "application/json")


async def off_loop(work: Callable[[], T], num_values: int) -> T:
    """Call `work`, on a thread if it handles many numbers."""
    return await asyncio.to_thread(work) if num_values > LARGE else work()


def parts(value: Any, max_values: int = LARGE) -> Iterator[bytes]:
    """The JSON of `value` in pieces of at most about `max_values` numbers each."""
    if size(value, max_values) <= max_values or not _is_divisible(value):
        yield dumps(value)
    elif isinstance(value, dict):
        for i, (key, item) in enumerate(value.items()):
            yield (b"," if i else b"{") + dumps(key) + b":"
            yield from parts(item, max_values)
        yield b"}"
    else:
        for i, run in enumerate(_runs(value, max_values)):
            yield b"," if i else b"["
            if len(run) > 1 or size(run[0], max_values) <= max_values:
                yield dumps(run)[1:-1]
            else:
                yield from parts(run[0], max_values)
        yield b"]"


def size(value: Any, enough: int = sys.maxsize) -> int:
    """About how many numbers' work it is to write: eight characters of a text count as one.

    Counting stops where `enough` is passed.
    """
    if isinstance(value, np.ndarray):
        return int(value.size)
    if isinstance(value, str):
        return len(value) // 8 + 1
    if not isinstance(value, (dict, list, tuple)):
        return 1
    total = len(value)
    for item in value.values() if isinstance(value, dict) else value:
        if total > enough:
            break
        if isinstance(item, (str, dict, list, tuple, np.ndarray)):
            total += size(item, enough - total)
    return total


def _is_divisible(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 1
    return isinstance(value, (dict, list, tuple)) and len(value) > 0


def _runs(items: Any, max_values: int) -> Iterator[Any]:
    """Consecutive items, as many at a time as fit; one that does not fit alone."""
    if isinstance(items, np.ndarray):
        num_rows = max(1, max_values // max(1, items[0].size))
        for first in range(0, len(items), num_rows):
            yield items[first : first + num_rows]
        return
    run: list[Any] = []
    num_values = 0
    for item in items:
        num_item = size(item, max_values)
        if run and num_values + num_item > max_values:
            yield run
            run, num_values = [], 0
        run.append(item)
        num_values += num_item
    if run:
        yield run
