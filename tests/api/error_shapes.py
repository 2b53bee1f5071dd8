"""The shape of an error in each dialect, as clients know it: written down apart from the server's
own table, which the tests compare with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

TEI_PATHS = (
    *("/embed", "/embed_sparse", "/embed_all", "/similarity"),
    *("/tokenize", "/decode", "/info"),
)
OPENAI_STARTS = ("/v1/", "/v2/")
OPENAI_PATHS = ("/embeddings", "/rerank", "/score")

TEI_TYPES = {
    401: "Unauthorized",
    404: "NotFound",
    405: "NotFound",
    413: "Validation",
    422: "Validation",
    429: "Overloaded",
    500: "Backend",
    503: "Unhealthy",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What an error says; `param` and `code` in OpenAI's dialect alone."""

    text: str
    param: str | None = None
    code: str | None = None


def dialect_by_path(path: str) -> str:
    """Which shape an error has before a body is read."""
    if path in OPENAI_PATHS or path.startswith(OPENAI_STARTS):
        return "openai"
    return "tei" if path in TEI_PATHS else "ollama"


def fault_of(answer: httpx.Response, dialect: str, status: int | None = None) -> Fault:
    """The error of an answer, its shape checked. `status` 400 is 422 in TEI's dialect."""
    if status is not None:
        wanted = 422 if (status, dialect) == (400, "tei") else status
        assert answer.status_code == wanted, answer.text
    assert answer.status_code >= 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert float(answer.headers["x-total-time"]) >= 0
    fault = fault_in(answer.json(), dialect, answer.status_code)
    assert isinstance(fault.text, str)
    assert fault.text
    return fault


def fault_in(body: dict[str, Any], dialect: str, status: int) -> Fault:
    """The same of a body alone."""
    if dialect == "ollama":
        assert body.keys() == {"error"}
        return Fault(body["error"])
    if dialect == "tei":
        assert body.keys() == {"error", "error_type"}
        assert body["error_type"] == TEI_TYPES[status]
        return Fault(body["error"])
    assert body.keys() == {"error", "detail"}
    inner = body["error"]
    assert inner.keys() == {"message", "type", "param", "code"}
    kind = "invalid_request_error" if status < 500 else "server_error"
    assert inner["type"] == ("rate_limit_error" if status == 429 else kind)
    assert inner["message"] == body["detail"]
    assert inner["param"] is None or isinstance(inner["param"], str)
    assert inner["code"] is None or isinstance(inner["code"], str)
    return Fault(inner["message"], inner["param"], inner["code"])
