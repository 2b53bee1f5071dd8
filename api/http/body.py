"""The common beginning of a POST: its body is read within a limit, parsed as JSON whatever its
content type, and checked.

Bad input becomes an InvalidRequest that says what is wrong; it never costs more than its own bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError

from api.http.errors import HTTPError
from serving.errors import InvalidRequest
from serving.rows import is_unicode
from serving.server import Server
from serving.state import Call, Deadline, while_waited_for

T = TypeVar("T", bound=BaseModel)

# A refused body is read on and thrown away up to this many times the limit, so that the client gets
# to read the answer instead of a reset connection.
_MAX_DISCARDED = 16
MAX_BODY_S = 300.0  # whoever has begun a body takes one of the queue's requests
_MAX_FAULTS = 5  # of a body, told


async def begin(request: Request, kind: type[T]) -> tuple[Call, T]:
    """The admitted call of a route that computes, and its body."""
    call: Call = request.scope["state"]["call"]
    return call, check(await read_object(request), kind)


async def read_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object."""
    value = parse_json(await read_body(request))
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, not {_json_name(value)}")
    return value


def check(value: dict[str, Any], kind: type[T]) -> T:
    """Raises InvalidRequest that names every field at fault."""
    try:
        body = kind.model_validate(value)
    except ValidationError as error:
        raise _refusal(error) from None
    for name, field in body:
        if isinstance(field, str) and not is_unicode(field):
            raise InvalidRequest(f"{name} is not valid Unicode: it has a lone surrogate", name)
    return body


class _Stalled(Deadline):
    """Whoever sends a byte now and then must not keep the connection either."""

    def passed(self) -> Exception:
        message = f"the body was not there after {self.timeout_s:g} s"
        return HTTPError(408, message, {"Connection": "close"})


async def read_body(request: Request) -> bytes:
    """At most `max_body_bytes` are held. Raises 413 beyond that, 408 for one that does not come to
    its end, and TooLate when the request's own timeout has passed before."""
    call: Call | None = request.scope["state"].get("call")
    server: Server = request.app.state.server
    serving = server.serving if call is None else call.serving
    max_bytes = serving.settings.max_body_bytes
    ends_at = asyncio.get_running_loop().time() + MAX_BODY_S
    stalled: Deadline = _Stalled(MAX_BODY_S, "", ends_at)
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


def parse_json(body: bytes) -> Any:
    """Raises InvalidRequest with the parser's reason. Lone surrogates pass: to be named later."""
    if not body.strip():
        raise InvalidRequest("missing request body")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"\\u" not in body:
            raise InvalidRequest(f"invalid JSON: {error}") from None
    try:  # orjson refuses a lone "\ud800" without saying where; the caller will
        return json.loads(
            body, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer
        )
    except RecursionError:
        raise InvalidRequest("invalid JSON: depth limit exceeded") from None
    except ValueError as error:
        raise InvalidRequest(f"invalid JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int | float:
    """As orjson does: what needs more than 64 bits is a float."""
    return int(digits) if len(digits) < 19 else _finite(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("number is infinity when parsed as double")
    return number


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
