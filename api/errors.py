"""What a client can do wrong or meet, and the one table from errors to HTTP answers.

Every route raises; nothing else builds an error body. A 500 never shows internals.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from api.loads import LoadFailed
from api.residents import LoadTimeout, NoRoom
from batcher.lane import LaneClosed, StepFailed
from engine.errors import BadPrompt, TextTooLong

log = logging.getLogger("embedding.api")

_SAYS_NOTHING = "internal error; the server's log has the details under this answer's x-request-id"


class ApiError(Exception):
    """An answer that is no success: its HTTP status and a text for the caller."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class BadRequest(ApiError):
    """400: the text names the field and the limit."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)


class ErrorBody(BaseModel):
    """What every error answers below /api."""

    error: str


class OpenAIError(BaseModel):
    """The inner object of OpenAI's errors."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIErrorBody(BaseModel):
    """What every error answers on the rerank and score routes; `detail` repeats the message for
    clients of vLLM and Jina."""

    error: OpenAIError
    detail: str


_ERRORS = {
    400: "bad input: the text names field and limit",
    404: "unknown model",
    413: "body too large",
    503: "starting, stopping, the model is loading, or there is no memory for it",
}
# For a route's OpenAPI entry.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text} for status, text in _ERRORS.items()
}
OPENAI_ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenAIErrorBody, "description": text} for status, text in _ERRORS.items()
}

_OPENAI_PATHS = ("/v1/", "/v2/", "/rerank", "/score")
_OUR_OWN = (ApiError, LaneClosed, StepFailed, LoadFailed, LoadTimeout, NoRoom)


def install(app: FastAPI) -> None:
    """Let every error leave the app in the shape of its route's dialect."""
    for kind in (ApiError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> JSONResponse:
    return answer(error, request.state.request_id, request.url.path)


def answer(error: Exception, request_id: str, path: str) -> JSONResponse:
    """The response for any error; our own bugs are logged under the request's id."""
    known = to_api_error(error)
    if known.status >= 500 and not isinstance(error, _OUR_OWN):
        log.error("request %s failed", request_id, exc_info=error)
    body: dict[str, Any] = {"error": known.message}
    if path.startswith(_OPENAI_PATHS):
        kind = "invalid_request_error" if known.status < 500 else "server_error"
        inner = {"message": known.message, "type": kind, "param": None, "code": None}
        body = {"error": inner, "detail": known.message}
    return JSONResponse(body, known.status, known.headers)


def to_api_error(error: Exception) -> ApiError:
    """The table."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, TextTooLong):
        return BadRequest(f"the input length exceeds the context length: {error}")
    if isinstance(error, BadPrompt):
        return BadRequest(str(error))
    if isinstance(error, (LaneClosed, LoadFailed, NoRoom)):
        return ApiError(503, str(error))
    if isinstance(error, LoadTimeout):
        return ApiError(503, str(error), {"Retry-After": "10"})
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, _http_text(error), dict(error.headers or {}))
    if isinstance(error, RequestValidationError):
        return BadRequest("; ".join(str(e.get("msg")) for e in error.errors()))
    if isinstance(error, StepFailed):
        return ApiError(500, "the model failed on this request; the server's log has the details")
    return ApiError(500, _SAYS_NOTHING)


def _http_text(error: HTTPException) -> str:
    detail: Any = error.detail
    return detail.lower() if isinstance(detail, str) else str(detail)
