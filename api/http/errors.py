"""The one table from errors to HTTP answers, and how each dialect writes them.

Whoever meets an error raises it; a 500 never shows internals.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from batcher.batches import BatchFailed, RowFailed
from batcher.worker import WorkerClosed
from engine.errors import BadPrompt, BadTokenIds, NoTokens, TextTooLong
from serving.errors import InvalidRequest, NotFound, Overloaded, ServingError, Unavailable

log = logging.getLogger("embedding.api")

Dialect = Literal["ollama", "openai", "tei"]

_SAYS_NOTHING = "internal error; the server's log has the details under this answer's x-request-id"


class HTTPError(ServingError):
    """What only HTTP knows: a body that is too large, a missing key."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


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
    """What every error answers on OpenAI's, the rerank and the score routes; `detail` repeats the
    message for clients of vLLM and Jina."""

    error: OpenAIError
    detail: str


class TEIErrorBody(BaseModel):
    """What every error answers on text-embeddings-inference's routes."""

    error: str
    error_type: str


_BODIES = {"ollama": ErrorBody, "openai": OpenAIErrorBody, "tei": TEIErrorBody}
_TEI_TYPES = {401: "Unauthorized", 404: "NotFound", 405: "NotFound", 429: "Overloaded"}
_OPENAI_CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}

_ERRORS: dict[int | str, str] = {
    400: "bad input: the text names the field and the limit",
    401: "an API key is set and this request has another or none",
    404: "unknown model",
    408: "the body did not come to its end",
    413: "the body is too large",
    429: "the queue is full, or the request cannot be done in time; Retry-After tells when to ask "
    "again, in seconds",
    503: "starting, stopping, the model is loading, there is no memory for it, or the request's "
    "timeout (x-request-timeout, seconds) has passed",
}


def error_responses(dialect: Dialect) -> dict[int | str, dict[str, Any]]:
    """For a route's OpenAPI entry."""
    texts = {**_ERRORS, "default": "any other error"}
    if dialect == "tei":
        texts[422] = texts.pop(400)
    return {
        status: {"model": _BODIES[dialect], "description": text} for status, text in texts.items()
    }


def install(app: FastAPI) -> None:
    """Let every error leave the app in the shape of its route's dialect."""
    for kind in (ServingError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> JSONResponse:
    return answer(error, request.scope)


def speaks(request: Request, dialect: Dialect) -> None:
    """Say what a request on a shared route turned out to be."""
    request.state.dialect = dialect


def answer(error: Exception, scope: Scope) -> JSONResponse:
    """The response for any error; our own bugs are logged under the request's id."""
    status, message, headers = _status_of(error)
    if message == _SAYS_NOTHING:
        log.error("request %s failed", scope["state"]["request_id"], exc_info=error)
    param, code = getattr(error, "param", None), getattr(error, "code", None)
    dialect: Dialect = scope["state"].get("dialect", "ollama")
    status, body = _write(dialect, status, _writable(message), param and _writable(param), code)
    return JSONResponse(body, status, headers)


def _status_of(error: Exception) -> tuple[int, str, dict[str, str]]:
    """The table: status, text and headers."""
    if isinstance(error, HTTPError):
        return error.status, error.message, error.headers or {}
    if isinstance(error, TextTooLong):
        return 400, f"the input length exceeds the context length: {error}", {}
    if isinstance(error, (InvalidRequest, BadPrompt, BadTokenIds, NoTokens)):
        return 400, str(error), {}
    if isinstance(error, NotFound):
        return 404, error.message, {}
    if isinstance(error, (Overloaded, Unavailable)):
        status = 429 if isinstance(error, Overloaded) else 503
        retry = error.retry_after_s
        return status, str(error), {} if retry is None else {"Retry-After": str(retry)}
    if isinstance(error, WorkerClosed):
        return 503, str(error), {}
    if isinstance(error, HTTPException):
        detail: Any = error.detail
        text = detail.lower() if isinstance(detail, str) else str(detail)
        return error.status_code, text, dict(error.headers or {})
    if isinstance(error, RequestValidationError):
        return 400, "; ".join(str(fault.get("msg")) for fault in error.errors()), {}
    if isinstance(error, RowFailed):
        return 500, str(error), {}
    if isinstance(error, BatchFailed):
        return 500, "the model failed on this request; the server's log has the details", {}
    return 500, _SAYS_NOTHING, {}


def _write(
    dialect: Dialect, status: int, message: str, param: str | None, code: str | None
) -> tuple[int, dict[str, Any]]:
    """Status and body. `param` is the field at fault, `code` a short name of the fault."""
    if dialect == "ollama":
        return status, {"error": message}
    if dialect == "tei":
        status = 422 if status == 400 else status
        kind = "Validation" if status in (413, 422) else _TEI_TYPES.get(status, "Backend")
        return status, {"error": message, "error_type": "Unhealthy" if status == 503 else kind}
    kind = "invalid_request_error" if status < 500 else "server_error"
    inner = {
        "message": message,
        "type": "rate_limit_error" if status == 429 else kind,
        "param": param,
        "code": code or _OPENAI_CODES.get(status),
    }
    return status, {"error": inner, "detail": message}


def _writable(text: str) -> str:
    """What repeats a client's own lone surrogate has it as `\\ud800`: no encoding can write it."""
    return text.encode("utf-8", "backslashreplace").decode()
