"""A request's body: read within a limit, parsed as JSON whatever its content type, and checked.

Bad input becomes a BadRequest that says what is wrong; it never costs more than its own bytes.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError

from api.http.errors import ApiError, BadRequest
from serving.deadline import Deadline, given_up_at
from serving.server import Service

T = TypeVar("T", bound=BaseModel)

# A refused body is read on and thrown away up to this many times the limit, so that the client gets
# to read the answer instead of a reset connection.
_MAX_DISCARDED = 16
MAX_BODY_S = 300.0  # whoever has begun a body holds one of the queue's places
_MAX_FAULTS = 5  # of a body, told


async def read_request(request: Request, kind: type[T], max_bytes: int) -> T:
    """The body as `kind`. Raises 400 or 413."""
    return check(await read_object(request, max_bytes), kind)


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as a JSON object. Raises 400 or 413."""
    value = parse_json(await read_body(request, max_bytes))
    if not isinstance(value, dict):
        raise BadRequest(f"the body must be a JSON object, not {_json_name(value)}")
    return value


def check(value: dict[str, Any], kind: type[T]) -> T:
    """Raises 400 that names every field at fault."""
    try:
        body = kind.model_validate(value)
    except ValidationError as error:
        raise _refusal(error) from None
    for name, field in body:
        if isinstance(field, str) and not is_unicode(field):
            raise BadRequest(f"{name} is not valid Unicode: it has a lone surrogate", name)
    return body


async def read_body(request: Request, max_bytes: int) -> bytes:
    """At most `max_bytes` are held. Raises 413 beyond that, 408 for one that does not come to its
    end, and 503 when the request's own timeout has passed before."""
    service: Service = request.app.state.service
    deadline: Deadline | None = request.scope["state"].get("deadline")
    ends_at = asyncio.get_running_loop().time() + MAX_BODY_S
    stream = request.stream()
    async with service.in_time(deadline), given_up_at(ends_at, _stalled):
        body = await _read(stream, max_bytes)
    if body is None:
        async with given_up_at(ends_at, lambda: _too_large(max_bytes)):
            await _discard(stream, max_bytes * _MAX_DISCARDED)
        raise _too_large(max_bytes)
    return body


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


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"the body is larger than {max_bytes} bytes (max_body_bytes)")


def _stalled() -> ApiError:
    """Whoever sends a byte now and then must not keep the connection either."""
    message = f"the body was not there after {MAX_BODY_S:g} s"
    return ApiError(408, message, {"Connection": "close"})


def parse_json(body: bytes) -> Any:
    """Raises BadRequest with the parser's reason. Lone surrogates pass, to be named by index."""
    if not body.strip():
        raise BadRequest("missing request body")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"\\u" not in body:
            raise BadRequest(f"invalid JSON: {error}") from None
    try:  # orjson refuses a lone "\ud800" without saying where; the caller will
        return json.loads(
            body, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer
        )
    except RecursionError:
        raise BadRequest("invalid JSON: depth limit exceeded") from None
    except ValueError as error:
        raise BadRequest(f"invalid JSON: {error}") from None


def is_unicode(text: str) -> bool:
    """False for a text with a lone surrogate, which no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def _refusal(error: ValidationError) -> BadRequest:
    """The first few faults, by field: a list may have thousands."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    named = []
    for fault in faults[:_MAX_FAULTS]:
        field = ".".join(str(part) for part in fault["loc"])
        named.append((field, fault["msg"].removeprefix("Value error, ")))
    more = len(faults) - len(named)
    text = "; ".join(f"{field}: {message}" for field, message in named)
    return BadRequest(text + (f"; and {more} more" if more else ""), named[0][0])


def _json_name(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
