"""What a client can do wrong or meet, and the one table from errors to HTTP answers.

Every route raises; api/http/dialects.py writes the body. A 500 never shows internals.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from api.http.dialects import (
    Dialect,
    ErrorBody,
    OpenAIErrorBody,
    TEIErrorBody,
    dialect_of,
    write_error,
)
from batcher.admission import Overloaded
from batcher.lane import LaneClosed
from batcher.steps import RowFailed, StepFailed
from engine.errors import BadPrompt, BadTokenIds, NoTokens, TextTooLong
from serving.loads import LoadFailed
from serving.residents import LoadTimeout, NoRoom

log = logging.getLogger("embedding.api")

_SAYS_NOTHING = "internal error; the server's log has the details under this answer's x-request-id"


class ApiError(Exception):
    """An answer that is no success: its HTTP status and a text for the caller.

    `param` names the field at fault, `code` is a short name of the fault, for dialects that tell.
    """

    def __init__(
        self,
        status: int,
        message: str,
        headers: dict[str, str] | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers
        self.param, self.code = param, code


class BadRequest(ApiError):
    """400: the text names the field and the limit."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(400, message, param=param)


_ERRORS: dict[int | str, str] = {
    400: "bad input: the text names field and limit",
    401: "an API key is set and this request has another or none",
    404: "unknown model",
    408: "the body did not come to its end",
    413: "body too large",
    429: "the queue is full, or the request cannot be done in time; Retry-After tells when to ask "
    "again, in seconds",
    503: "starting, stopping, the model is loading, there is no memory for it, or the request's "
    "timeout (x-request-timeout, seconds) has passed",
}


def error_responses(dialect: Dialect) -> dict[int | str, dict[str, Any]]:
    """For a route's OpenAPI entry."""
    bodies = {"ollama": ErrorBody, "openai": OpenAIErrorBody, "tei": TEIErrorBody}
    texts = {**_ERRORS, "default": "any other error"}
    if dialect == "tei":
        texts[422] = texts.pop(400)
    return {
        status: {"model": bodies[dialect], "description": text} for status, text in texts.items()
    }


_OUR_OWN = (ApiError, LaneClosed, StepFailed, LoadFailed, LoadTimeout, NoRoom)


def install(app: FastAPI) -> None:
    """Let every error leave the app in the shape of its route's dialect."""
    for kind in (ApiError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> JSONResponse:
    return answer(error, request.scope)


def answer(error: Exception, scope: Scope) -> JSONResponse:
    """The response for any error; our own bugs are logged under the request's id."""
    known = to_api_error(error)
    if known.status >= 500 and not isinstance(error, _OUR_OWN):
        log.error("request %s failed", scope["state"]["request_id"], exc_info=error)
    message, param = _writable(known.message), known.param and _writable(known.param)
    status, body = write_error(dialect_of(scope), known.status, message, param, known.code)
    return JSONResponse(body, status, known.headers)


def _writable(text: str) -> str:
    """What repeats a client's own lone surrogate has it as `\\ud800`: no encoding can write it."""
    return text.encode("utf-8", "backslashreplace").decode()


def to_api_error(error: Exception) -> ApiError:
    """The table."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TextTooLong):
        return BadRequest(f"the input length exceeds the context length: {error}")
    if isinstance(error, (BadPrompt, BadTokenIds, NoTokens)):
        return BadRequest(str(error))
    if isinstance(error, (LaneClosed, LoadFailed, NoRoom)):
        return ApiError(503, str(error))
    if isinstance(error, Overloaded):
        return ApiError(429, str(error), {"Retry-After": str(error.retry_after_s)})
    if isinstance(error, LoadTimeout):
        return ApiError(503, str(error), {"Retry-After": "10"})
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, _http_text(error), dict(error.headers or {}))
    if isinstance(error, RequestValidationError):
        return BadRequest("; ".join(str(e.get("msg")) for e in error.errors()))
    if isinstance(error, RowFailed):
        return ApiError(500, str(error))
    if isinstance(error, StepFailed):
        return ApiError(500, "the model failed on this request; the server's log has the details")
    return ApiError(500, _SAYS_NOTHING)


def _http_text(error: HTTPException) -> str:
    detail: Any = error.detail
    return detail.lower() if isinstance(detail, str) else str(detail)
