"""Ollama's dialect: POST /api/embed. Errors are `{"error": "text"}`.

Reads and writes that dialect and nothing more; the work is in api/jobs.py.
"""

from __future__ import annotations

import math
import re
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from api import vectors
from api.body import read_request
from api.errors import ERROR_RESPONSES, ApiError, BadRequest
from api.jobs import EmbedRequest, check_texts, embed
from api.names import same_model
from api.service import Service

router = APIRouter(tags=["Ollama"])

_DURATION_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "\u00b5s": 1e-6,  # micro sign
    "\u03bcs": 1e-6,  # Greek mu
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_MAX_DURATION_CHARS = 100  # matching is quadratic in the length


def parse_keep_alive(value: Any) -> float | None:
    """Seconds or a Go duration ("1h30m") -> seconds; negative means for ever; None stays None.

    Source: Go's time.ParseDuration, which Ollama uses. Raises ValueError.
    """
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if not isinstance(value, str) or len(value) > _MAX_DURATION_CHARS:
        raise ValueError("must be seconds or a duration such as 5m")
    sign, text = (-1.0, value[1:]) if value.startswith("-") else (1.0, value.removeprefix("+"))
    parts = _DURATION_PART.findall(text)
    if text == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("must be seconds or a duration such as 5m, 1h30m or -1s")
    return sign * sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)


def _refuse_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value


WholeNumber = Annotated[int, BeforeValidator(_refuse_boolean)]


class Options(BaseModel):
    """Ollama's model options; only `num_ctx` means anything to an embedder."""

    model_config = ConfigDict(extra="ignore")
    num_ctx: WholeNumber | None = Field(None, description="lowers the longest input, in tokens")


class EmbedBody(BaseModel):
    """POST /api/embed"""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={"examples": [{"input": ["why is the sky blue?", "hello"]}]},
    )
    model: str | None = Field(None, description="the default model when absent")
    input: Any = Field(None, description="a text or a list of texts")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: each vector's little-endian float32 bytes"
    )
    truncate: bool | None = Field(None, description="false: a text too long is an error")
    dimensions: WholeNumber | None = Field(
        None,
        description="cut vectors to this many values, L2 again; ignored out of range",
    )
    options: Options | None = None
    keep_alive: Annotated[float | None, BeforeValidator(parse_keep_alive)] = Field(
        None,
        description="seconds or a Go duration",
        json_schema_extra={"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]},
    )


class EmbedAnswer(BaseModel):
    """200 of POST /api/embed; durations in nanoseconds."""

    model: str
    embeddings: list[list[float]] | list[str]
    total_duration: int
    load_duration: int
    prompt_eval_count: int | None = None


_SCHEMA = EmbedBody.model_json_schema()
_SCHEMA["properties"]["options"]["anyOf"][0] = _SCHEMA.pop("$defs")["Options"]  # no $ref dangles


@router.post(
    "/api/embed",
    summary="Embed texts",
    responses={200: {"model": EmbedAnswer}, **ERROR_RESPONSES},
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}
    },
)
async def post_embed(request: Request) -> Response:
    """Vectors of one or many texts, L2-normalised, in input order."""
    start = time.perf_counter_ns()
    service: Service = request.app.state.service
    serving = service.admit()
    model, settings = serving.model, serving.settings
    body = await read_request(request, EmbedBody, settings.max_body_bytes)
    if body.model and not same_model(body.model, model.name):
        raise ApiError(404, f"model '{body.model}' not found")
    answer: dict[str, Any] = {"model": body.model or model.name, "embeddings": []}
    times = {"total_duration": 0, "load_duration": int(service.load_s * 1e9)}
    headers: dict[str, str] = {}
    texts = _texts(body.input)
    check_texts(texts, settings.max_inputs, "input")
    if texts:
        wanted = EmbedRequest(texts, body.truncate is not False, _num_ctx(body))
        embedded = await embed(service, serving, request, wanted)
        in_range = body.dimensions if 1 <= (body.dimensions or 0) <= model.dim else None
        rows = vectors.finish(embedded.rows, in_range)
        as_base64 = body.encoding_format == "base64"
        answer["embeddings"] = vectors.to_base64(rows) if as_base64 else rows
        headers = embedded.headers()
        times["prompt_eval_count"] = embedded.num_tokens
    times["total_duration"] = time.perf_counter_ns() - start
    return Response(vectors.dumps(answer | times), 200, headers, "application/json")


def _texts(value: Any) -> list[Any]:
    """Empty for what only loads the model: absent, null, an empty string or list."""
    if value is None or value == "" or value == []:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return value
    raise BadRequest("invalid input type: input must be a string or a list of strings")


def _num_ctx(body: EmbedBody) -> int | None:
    num_ctx = body.options.num_ctx if body.options else None
    return num_ctx if num_ctx and num_ctx > 0 else None
