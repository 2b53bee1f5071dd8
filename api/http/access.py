"""Who may call: API keys, and browsers of other origins. Plain ASGI, before any route.

A path that is not listed as open needs a key, so that a new route is closed until somebody decides
otherwise.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.dialects import route_path
from api.http.errors import ApiError, answer
from serving.server import Service

# No user's text goes in or out here: the page and its files, the state, the documentation.
OPEN_PATHS = frozenset(
    {
        *("/", "/health", "/live", "/ready", "/metrics"),
        *("/docs", "/docs/oauth2-redirect", "/openapi.json"),
    }
)
OPEN_BELOW = ("/page/", "/static-offline-docs/")

# What a browser's script may read of an answer.
_EXPOSED = (
    *("x-request-id", "x-queue-time", "x-tokenization-time", "x-inference-time", "x-total-time"),
    *("x-compute-tokens", "retry-after"),
)


def is_open(path: str) -> bool:
    """Whether a path answers without a key."""
    return path in OPEN_PATHS or path.startswith(OPEN_BELOW)


class KeyGate:
    """401 for whoever lacks one of the keys in settings; with none set, everybody may pass."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_open(route_path(scope)):
            refusal = self._refusal(Headers(scope=scope).get("authorization", ""))
            if refusal is not None:
                await answer(refusal, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, authorization: str) -> ApiError | None:
        settings = self._service.settings
        if settings is None:  # which keys there are is not known yet
            return ApiError(503, self._service.reason, {"Retry-After": "5"})
        if not settings.api_keys or _is_one_of(authorization, settings.api_keys):
            return None
        told = "wrong" if authorization else "missing"
        message = f"{told} API key: send one as 'Authorization: Bearer <key>'"
        return ApiError(401, message, {"WWW-Authenticate": "Bearer"})


def _is_one_of(authorization: str, keys: Sequence[str]) -> bool:
    """In a time that tells nothing of the keys: each is compared, and to its end."""
    scheme, _, sent = authorization.partition(" ")
    found = False
    for key in keys:
        found |= hmac.compare_digest(sent.strip().encode(), key.encode())
    return found and scheme.lower() == "bearer"


class Cors:
    """Starlette's CORS answers for the origins in settings; without any, none."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._with_cors: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = self._service.settings
        if self._with_cors is None and settings is not None:  # known once the app has started
            self._with_cors = self._wrap(settings.allowed_origins)
        await (self._with_cors or self._app)(scope, receive, send)

    def _wrap(self, origins: Sequence[str]) -> ASGIApp:
        if not origins:
            return self._app
        return CORSMiddleware(
            self._app,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
