"""The bodies of requests and of answers, both JSON.

A request's is read within a limit, parsed whatever its content type, and checked; bad input never
costs more than its own bytes. A large answer is written on a thread and in parts: orjson holds the
interpreter's lock while it writes, and would stop the event loop (bench/serialization.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from api.http.errors import HTTPError
from api.http.parsing import read_json
from serving.errors import InvalidRequest
from serving.rows import Cost
from serving.server import Server
from serving.state import Call, Deadline, while_waited_for

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")

# A refused body is read on and thrown away up to this many times the limit, so that the client gets
# to read the answer instead of a reset connection.
_MAX_DISCARDED = 16
_MAX_FAULTS = 5  # of a body, told
# Answers of more numbers are written on a thread, so many at a time: one to two milliseconds each,
# for which the loop stands still. Measured: bench/results/serialization.json
LARGE = 32_768


async def begin(request: Request, kind: type[B]) -> tuple[Call, B]:
    """The admitted call of a route that computes, and its body."""
    call: Call = request.scope["state"]["call"]
    return call, check(await read_object(request), kind)


async def read_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object."""
    value = await read_json(await read_body(request), _max_inputs(request))
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_json_name(value)}")
    return value


def _max_inputs(request: Request) -> int:
    server: Server = request.app.state.server
    return server.settings.max_inputs


def check(value: dict[str, Any], kind: type[B]) -> B:
    """Raises InvalidRequest that names every field at fault."""
    try:
        body = kind.model_validate(value)
    except ValidationError as error:
        raise _refusal(error) from None
    for name, field in body:
        if isinstance(field, str):
            try:
                field.encode()
            except UnicodeEncodeError:
                message = f"{name} is not valid Unicode: it has a lone surrogate"
                raise InvalidRequest(message, name) from None
    return body


class _Stalled(Deadline):
    """Whoever sends a byte now and then must not keep the connection either."""

    def passed(self) -> Exception:
        message = f"the body was not there after {self.timeout_s:g} s (body_timeout_s)"
        return HTTPError(408, message, {"Connection": "close"})


async def read_body(request: Request) -> bytes:
    """At most `max_body_bytes` are held. Raises 413 beyond that, 408 for one that does not come to
    its end, and TooLate when the request's own timeout has passed before."""
    call: Call | None = request.scope["state"].get("call")
    server: Server = request.app.state.server
    serving = server.serving if call is None else call.serving
    max_bytes = serving.settings.max_body_bytes
    timeout_s = serving.settings.body_timeout_s
    ends_at = asyncio.get_running_loop().time() + timeout_s
    stalled: Deadline = _Stalled(timeout_s, "", ends_at)
    first = stalled
    if call is not None and call.deadline is not None and call.deadline.ends_at < ends_at:
        first = call.deadline
    stream = request.stream()
    async with while_waited_for(first):
        body = await _read(stream, max_bytes)
    if body is not None:
        return body
    too_large = HTTPError(413, f"the body is larger than {max_bytes} bytes (max_body_bytes)")
    with contextlib.suppress(HTTPError):
        async with while_waited_for(stalled):
            await _discard(stream, max_bytes * _MAX_DISCARDED)
    raise too_large


async def _read(stream: AsyncIterator[bytes], max_bytes: int) -> bytes | None:
    """None as soon as it is larger."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in stream:
        size += len(chunk)
        if size > max_bytes:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


async def _discard(stream: AsyncIterator[bytes], max_bytes: int) -> None:
    async for chunk in stream:
        max_bytes -= len(chunk)
        if max_bytes < 0:
            return


def _refusal(error: ValidationError) -> InvalidRequest:
    """The first few faults, by field: a list may have thousands."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    named = []
    for fault in faults[:_MAX_FAULTS]:
        field = ".".join(str(part) for part in fault["loc"])
        named.append((field, fault["msg"].removeprefix("Value error, ")))
    more = len(faults) - len(named)
    text = "; ".join(f"{field}: {message}" for field, message in named)
    return InvalidRequest(text + (f"; and {more} more" if more else ""), named[0][0])


def _json_name(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


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
    return respond_with(await write(answer), cost)


def respond_with(content: bytes, cost: Cost | None = None) -> Response:
    """The same for an answer that is JSON already."""
    headers = {}
    if cost is not None:
        headers = {
            "x-tokenization-time": f"{cost.tokenization_ms:.2f}",
            "x-queue-time": f"{cost.queue_ms:.2f}",
            "x-inference-time": f"{cost.inference_ms:.2f}",
            "x-compute-tokens": str(cost.num_tokens),
        }
    return Response(content, 200, headers, "application/json")


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
