"""Which dialect a path belongs to, and how each writes an error. Must not know what went wrong.

A route that serves two dialects says which one a request speaks once it has read its body.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import Scope

Dialect = Literal["ollama", "openai", "tei"]


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


_TEI = (
    *("/embed", "/embed_sparse", "/embed_all", "/similarity"),
    *("/tokenize", "/decode", "/info"),
)
_OPENAI = ("/embeddings", "/rerank", "/score")
_OPENAI_BELOW = ("/v1/", "/v2/")

_TEI_TYPES = {401: "Unauthorized", 404: "NotFound", 405: "NotFound", 429: "Overloaded"}
_OPENAI_CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}


def route_path(scope: Scope) -> str:
    """The path below where the app is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def speaks(request: Request, dialect: Dialect) -> None:
    """Say what a request on a shared route turned out to be."""
    request.state.dialect = dialect


def dialect_of(scope: Scope) -> Dialect:
    """As said by the route, else by the path."""
    said: Dialect | None = scope.get("state", {}).get("dialect")
    path = route_path(scope)
    if said is not None:
        return said
    if path in _OPENAI or path.startswith(_OPENAI_BELOW):
        return "openai"
    return "tei" if path in _TEI else "ollama"


def write_error(
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
