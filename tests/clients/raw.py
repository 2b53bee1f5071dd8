"""What applications post whose code cannot be installed here: their bodies and headers, sent as
they send them. Must not know a dialect."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.servers import Server


def post(server: Server, path: str, body: dict[str, Any], key: str | None = "any") -> Any:
    """The answer of 200. No key: the header is there and empty, as Dify sends it."""
    with server.client() as client:
        answer = send(client, path, body, key)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server: Server, path: str, body: dict[str, Any]) -> httpx.Response:
    """The answer of 4xx."""
    with server.client() as client:
        answer = send(client, path, body, "any")
    assert 400 <= answer.status_code < 500, answer.text
    return answer


def send(client: httpx.Client, path: str, body: dict[str, Any], key: str | None) -> httpx.Response:
    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {key}" if key else "",
    }
    return client.post(path, content=json.dumps(body), headers=headers)
