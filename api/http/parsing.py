"""JSON bodies to values: large ones on a thread, and refused by cheap counts before they are made.

A body of small lists and objects takes far more memory and time than its bytes, so it is counted
first. Must not know requests or settings.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import orjson

from serving.errors import InvalidRequest

_LARGE = 1 << 16  # bytes: some 0.1 ms of orjson; above it a thread is cheaper than a pause
_MAX_SLOW = 1 << 20  # bytes that the standard library's parser, ten times slower, is given
_MAX_CONTAINERS = 1 << 17  # lists and objects of a body, or ten for each input allowed


async def read_json(body: bytes, max_inputs: int) -> Any:
    """Raises InvalidRequest, also for more lists and objects than so many inputs can need."""
    max_containers = max(_MAX_CONTAINERS, 10 * max_inputs)

    def read() -> Any:
        check_containers(body, max_containers)
        return parse_json(body)

    return await asyncio.to_thread(read) if len(body) > _LARGE else read()


def check_containers(body: bytes, max_containers: int) -> None:
    """Raises InvalidRequest for more lists and objects. Brackets in texts are free."""
    if _num_containers(body) <= max_containers:
        return
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # no quote of a text's own is left
    num_containers = _num_containers(b"".join(bare.split(b'"')[::2]))
    if num_containers > max_containers:
        raise InvalidRequest(
            f"the body has {num_containers} lists and objects, the limit is {max_containers}"
        )


def _num_containers(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")


def parse_json(body: bytes) -> Any:
    """Raises InvalidRequest with the parser's reason. Lone surrogates pass: to be named later."""
    if not body.strip():
        raise InvalidRequest("missing request body")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"\\u" not in body or len(body) > _MAX_SLOW:
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
