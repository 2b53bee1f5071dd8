"""Routes for whoever operates the server. /health tells the truth, cheaply, at any time."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from api.residents import Resident
from api.service import Service

router = APIRouter(tags=["Operations"])


@router.get("/health", summary="200 when requests are served, else 503 with the reason")
async def health(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    reason = service.unready_because
    if reason:
        state = service.state if service.state != "ready" else "failed"
        return JSONResponse({"status": state, "reason": reason}, 503)
    assert service.catalog is not None
    assert service.residents is not None
    assert service.lane is not None
    default = service.catalog.default
    resident = service.residents.get(default.name)
    body: dict[str, Any] = {"status": "ok", "model": default.name, **_describe(resident)}
    if default.is_stand_in:
        body["stand_in"] = "no model in the models folder: this small one stands in for yours"
    body["resident"] = [_describe(r) for r in service.residents.resident()]
    body["failed"] = service.residents.failures
    body["waiting_jobs"] = service.lane.num_waiting_jobs
    body["waiting_tokens"] = service.lane.num_waiting_tokens
    return JSONResponse(body)


def _describe(resident: Resident | None) -> dict[str, Any]:
    return {} if resident is None or resident.model is None else resident.model.describe()


router.add_api_route("/health", health, methods=["HEAD"], include_in_schema=False)
