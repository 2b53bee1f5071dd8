"""Routes for whoever operates the server. /health tells the truth, cheaply, at any time."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from api.http.frame import Exchanges
from api.http.routes import Routes
from serving.models.resident import Resident
from serving.server import Server

routes = Routes("Operations", "ollama")

_HEALTHY = {
    "status": "ok",
    "model": "bge-m3",
    "resident": [{"model": "bge-m3", "device": "cpu", "dim": 1024, "max_length": 8192}],
    "failed": {},
    "admitted_requests": 0,
    "waiting_jobs": 0,
    "waiting_tokens": 0,
    "computed_tokens": 120000,
    "requests": 90,
}


def _states(ready: Any) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's answers of a route that tells a state."""
    unready = {"status": "starting", "reason": "loading model bge-m3"}
    return {
        200: {"content": {"application/json": {"example": ready}}},
        503: {
            "description": "with the reason",
            "content": {"application/json": {"example": unready}},
        },
    }


@routes.look(
    "/health",
    is_open=True,
    head=True,
    summary="200 when requests are served, else 503 with the reason",
    responses=_states(_HEALTHY),
)
async def health(request: Request) -> JSONResponse:
    """Models in memory, what waits, and which models failed to load."""
    server: Server = request.app.state.server
    exchanges: Exchanges = request.app.state.exchanges
    refusal = _refusal(server)
    if refusal is not None:
        return refusal
    serving = server.serving
    default = serving.catalog.default
    resident = serving.residents.get(default.name)
    body: dict[str, Any] = {"status": "ok", "model": default.name, **_describe(resident)}
    if default.is_stand_in:
        body["stand_in"] = "no model in the models folder: this small one stands in for yours"
    body["resident"] = [_describe(each) for each in serving.residents.resident()]
    body["failed"] = serving.residents.failures
    body["admitted_requests"] = serving.admission.num_requests
    body["waiting_jobs"] = serving.worker.num_waiting_jobs
    body["waiting_tokens"] = serving.worker.num_waiting_tokens
    body["computed_tokens"] = server.metrics.num_tokens
    body["requests"] = exchanges.num_answered
    return JSONResponse(body)


@routes.look(
    "/live",
    is_open=True,
    head=True,
    summary="200 while the process answers",
    responses={200: {"content": {"application/json": {"example": {"status": "ok"}}}}},
)
async def live() -> JSONResponse:
    """For whatever restarts a process that hangs; a model still loading is no reason for that."""
    return JSONResponse({"status": "ok"})


@routes.look(
    "/ready",
    is_open=True,
    head=True,
    summary="200 when requests are served, else 503 with the reason",
    responses=_states({"status": "ok"}),
)
async def ready(request: Request) -> JSONResponse:
    """For whatever decides whether requests are sent here."""
    return _refusal(request.app.state.server) or JSONResponse({"status": "ok"})


@routes.look(
    "/metrics",
    is_open=True,
    head=True,
    summary="Counters and gauges for Prometheus",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": "embedding_queue_jobs 0.0"}}}},
)
async def metrics(request: Request) -> Response:
    """In Prometheus' text format, or OpenMetrics when asked for."""
    server: Server = request.app.state.server
    accept = request.headers.get("accept", "")
    content, media_type = await asyncio.to_thread(server.metrics.write, accept)
    return Response(content, 200, None, media_type)


def _refusal(server: Server) -> JSONResponse | None:
    reason = server.unready_because
    return JSONResponse({"status": server.status, "reason": reason}, 503) if reason else None


def _describe(resident: Resident | None) -> dict[str, Any]:
    return {} if resident is None or resident.model is None else resident.model.describe()
