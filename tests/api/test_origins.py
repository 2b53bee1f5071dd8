"""Browsers of other origins: none may read an answer unless the settings name it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.serving.fake_engine import FakeServer, serve_fake

KEY = "a-key"
ORIGIN = "https://app.example"


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with serve_fake(api_key=KEY, cors_origins=f"{ORIGIN}, http://localhost:3000") as running:
        yield running


def preflight(server: FakeServer, origin: str, path: str = "/v1/embeddings") -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    with server.client() as client:
        return client.options(path, headers=headers)


@pytest.mark.parametrize(("key", "status"), [(None, 405), (KEY, 401)])
def test_no_origin_is_allowed_unless_set(key: str | None, status: int) -> None:
    with serve_fake(api_key=key) as server:
        sent = {"Origin": ORIGIN, "Authorization": f"Bearer {key}"}
        answer = server.embed({"input": "a"}, headers=sent)
        assert answer.status_code == 200
        asked = preflight(server, ORIGIN)
    assert asked.status_code == status
    for other in (answer, asked):
        assert not [name for name in other.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000"])
def test_an_allowed_origin_may_ask_without_a_key(server: FakeServer, origin: str) -> None:
    answer = preflight(server, origin)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("origin", [ORIGIN, "http://localhost:3000"])
def test_an_allowed_origin_may_read_answers_and_errors(server: FakeServer, origin: str) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    asked: list[tuple[str, dict[str, str], int]] = [
        ("/v1/models", key, 200),
        ("/v1/models", {}, 401),
        ("/v1/models/nope", key, 404),
        ("/nope", key, 404),
        ("/health", {}, 200),
    ]
    with server.client() as client:
        for path, headers, status in asked:
            answer = client.get(path, headers={**headers, "Origin": origin})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == origin
            assert "x-request-id" in answer.headers["access-control-expose-headers"]
            assert "origin" in answer.headers["vary"].lower()


@pytest.mark.parametrize(
    "origin", ["https://app.example.evil", "http://app.example", "https://x.app.example", "null"]
)
def test_other_origins_may_read_nothing(server: FakeServer, origin: str) -> None:
    refused = preflight(server, origin)
    assert refused.status_code == 400
    answer = server.post("/api/embed", {}, headers={"Origin": origin})
    for other in (refused, answer):
        assert "access-control-allow-origin" not in other.headers


def test_a_star_allows_every_origin() -> None:
    with serve_fake(cors_origins="*") as server:
        answer = server.embed({"input": "a"}, headers={"Origin": "https://anything.example"})
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        assert preflight(server, "https://other.example").status_code == 200
