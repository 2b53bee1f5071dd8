"""A route in a new file, told nowhere else, has its key, its errors, its counts and its entry."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import api.dialects
from tests.serving.fake_engine import FakeServer, serve_fake

MODULE = """
from __future__ import annotations

from fastapi import Request, Response
from pydantic import BaseModel

from api.http.body import begin
from api.http.routes import Routes
from api.http.body import respond
from serving.embedding import EmbedRequest, embed

routes = Routes("Newcomer", "tei")


class LengthBody(BaseModel):
    text: str
    model: str | None = None


@routes.post(
    "/newcomer/length",
    summary="How many tokens a text is",
    takes=LengthBody,
    examples={"one": {"text": "a"}},
    gives=list[int],
    example=[3],
)
async def post_length(request: Request) -> Response:
    call, body = await begin(request, LengthBody)
    embedded = await embed(call, body.model, EmbedRequest([body.text], "text"))
    return await respond([embedded.num_tokens], embedded.cost)


@routes.look("/newcomer/open", is_open=True, summary="Says yes")
async def get_open(request: Request) -> Response:
    return Response("yes")
"""
PATH = "/newcomer/length"
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    (tmp_path / "newcomer.py").write_text(MODULE)
    monkeypatch.setattr(api.dialects, "__path__", [*api.dialects.__path__, str(tmp_path)])
    with serve_fake(api_key="secret", max_queue_requests=2) as running:
        yield running
    sys.modules.pop("api.dialects.newcomer")


def test_a_new_route_is_served_by_being_there(server: FakeServer) -> None:
    answer = server.post(PATH, {"text": "abc"}, headers=KEY)
    assert (answer.status_code, answer.json()) == (200, [5])
    assert answer.headers["x-compute-tokens"] == "5"
    refused = server.post(PATH, {"text": "abc"})
    assert (refused.status_code, refused.json()["error_type"]) == (401, "Unauthorized")
    wrong = server.post(PATH, {"text": 5}, headers=KEY)
    assert (wrong.status_code, wrong.json()["error_type"]) == (422, "Validation")
    unknown = server.post("/newcomer/nothing", {}, headers=KEY)
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "NotFound")
    assert server.get("/newcomer/open").text == "yes"
    counted = server.get("/metrics").text
    assert f'embedding_requests_total{{route="{PATH}",status="200"}} 1.0' in counted
    entry = server.get("/openapi.json").json()["paths"][PATH]["post"]
    assert entry["summary"] == "How many tokens a text is"
    assert {"200", "401", "422", "429", "503"} <= set(entry["responses"])


def test_a_new_route_that_computes_is_admitted_before_its_body_is_read(server: FakeServer) -> None:
    with server.client() as client:
        client.headers.update(KEY)
        server.serving.admission._max_requests = 0
        answer = client.post(PATH, content=b"{")
    assert (answer.status_code, answer.json()["error_type"]) == (429, "Overloaded")
