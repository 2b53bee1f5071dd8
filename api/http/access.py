"""Who may call: API keys, and browsers of other origins."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from api.http.errors import HTTPError

_DOCUMENTATION = frozenset({"/docs", "/docs/oauth2-redirect", "/openapi.json"})
_DOCUMENTATION_FILES = "/static-offline-docs/"

# What a browser's script may read of an answer.
_EXPOSED = (
    *("x-request-id", "x-queue-time", "x-tokenization-time", "x-inference-time", "x-total-time"),
    *("x-compute-tokens", "retry-after"),
)


def is_documentation(path: str) -> bool:
    """FastAPI's own pages, which are open without a key."""
    return path in _DOCUMENTATION or path.startswith(_DOCUMENTATION_FILES)


def check_key(authorization: str, keys: Sequence[str]) -> None:
    """Raises 401 for a header without one of the keys."""
    if not _is_one_of(authorization, keys):
        told = "wrong" if authorization else "missing"
        message = f"{told} API key: send one as 'Authorization: Bearer <key>'"
        raise HTTPError(401, message, {"WWW-Authenticate": "Bearer"})


def _is_one_of(authorization: str, keys: Sequence[str]) -> bool:
    """In a time that tells nothing of the keys: each is compared, and to its end."""
    scheme, _, sent = authorization.partition(" ")
    found = False
    for key in keys:
        found |= hmac.compare_digest(sent.strip().encode(), key.encode())
    return found and scheme.lower() == "bearer"


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The app with Starlette's CORS answers for these origins; without any, as it is."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=_EXPOSED,
    )
