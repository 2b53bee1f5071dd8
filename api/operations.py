"""Routes for whoever operates the server. /health tells the truth, cheaply, at any time."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from api.service import Service

router = APIRouter(tags=["Operations"])


@router.get("/health", summary="200 when requests are served, else 503 with the reason")
async def health(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    reason = service.unready_because
    if reason:
        state = service.state if service.state != "ready" else "failed"
        return JSONResponse({"status": state, "reason": reason}, 503)
    assert service.model is not None
    assert service.lane is not None
    body: dict[str, Any] = {"status": "ok", **service.model.describe()}
    if service.is_stand_in:
        body["stand_in"] = "no model in the models folder: this small one stands in for yours"
    body["waiting_jobs"] = service.lane.num_waiting_jobs
    body["waiting_tokens"] = service.lane.num_waiting_tokens
    return JSONResponse(body)


router.add_api_route("/health", health, methods=["HEAD"], include_in_schema=False)
