"""Routes for whoever operates the server. /health tells the truth, cheaply, at any time."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from serving.residents import Resident
from serving.server import Service

router = APIRouter(tags=["Operations"])


_HEALTHY = {
    "status": "ok",
    "model": "bge-m3",
    "resident": [{"model": "bge-m3", "device": "cpu", "dim": 1024, "max_length": 8192}],
    "failed": {},
    "open_jobs": 0,
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


@router.get(
    "/health",
    summary="200 when requests are served, else 503 with the reason",
    responses=_states(_HEALTHY),
)
async def health(request: Request) -> JSONResponse:
    """Models in memory, what waits, and which models failed to load."""
    service: Service = request.app.state.service
    refusal = _refusal(service)
    if refusal is not None:
        return refusal
    assert service.catalog is not None
    assert service.residents is not None
    assert service.lane is not None
    assert service.admission is not None
    default = service.catalog.default
    resident = service.residents.get(default.name)
    body: dict[str, Any] = {"status": "ok", "model": default.name, **_describe(resident)}
    if default.is_stand_in:
        body["stand_in"] = "no model in the models folder: this small one stands in for yours"
    body["resident"] = [_describe(r) for r in service.residents.resident()]
    body["failed"] = service.residents.failures
    body["open_jobs"] = service.admission.num_jobs
    body["waiting_jobs"] = service.lane.num_waiting_jobs
    body["waiting_tokens"] = service.lane.num_waiting_tokens
    body["computed_tokens"] = service.metrics.num_tokens
    body["requests"] = service.num_answered
    return JSONResponse(body)


@router.get(
    "/live",
    summary="200 while the process answers",
    responses={200: {"content": {"application/json": {"example": {"status": "ok"}}}}},
)
async def live() -> JSONResponse:
    """For what restarts a process that hangs; a model that loads is no reason to."""
    return JSONResponse({"status": "ok"})


@router.get(
    "/ready",
    summary="200 when requests are served, else 503 with the reason",
    responses=_states({"status": "ok"}),
)
async def ready(request: Request) -> JSONResponse:
    """For what sends requests here or elsewhere."""
    return _refusal(request.app.state.service) or JSONResponse({"status": "ok"})


@router.get(
    "/metrics",
    summary="Counters and gauges for Prometheus",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": "embedding_queue_jobs 0.0"}}}},
)
async def metrics(request: Request) -> Response:
    """In Prometheus' text format, or OpenMetrics when asked for."""
    service: Service = request.app.state.service
    accept = request.headers.get("accept", "")
    content, media_type = await asyncio.to_thread(service.metrics.write, accept)
    return Response(content, 200, None, media_type)


def _refusal(service: Service) -> JSONResponse | None:
    reason = service.unready_because
    if not reason:
        return None
    state = service.state if service.state != "ready" else "failed"
    return JSONResponse({"status": state, "reason": reason}, 503)


def _describe(resident: Resident | None) -> dict[str, Any]:
    return {} if resident is None or resident.model is None else resident.model.describe()


for _path, _route in (
    *(("/health", health), ("/live", live), ("/ready", ready)),
    ("/metrics", metrics),
):
    router.add_api_route(_path, _route, methods=["HEAD"], include_in_schema=False)
