"""No outgoing connection, at start or while serving: a guard inside the server process watches."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.servers import Server, clean_environment, start_server
from tests.serving.fake_engine import until

# Python imports sitecustomize at start. What would leave the machine is written down and refused.
GUARD = """
import os, sys

HERE = ("127.0.0.1", "::1", "localhost", None, "")
OUTGOING = ("connect", "sendto", "sendmsg", "getaddrinfo", "gethostbyname", "gethostbyaddr")


def guard(event, arguments):
    module, _, name = event.partition(".")
    if module != "socket" or name not in OUTGOING:
        return
    target = arguments[1] if name in ("connect", "sendto", "sendmsg") else arguments[0]
    host = target[0] if isinstance(target, tuple) else target if "get" in name else None
    if host not in HERE:
        with open(os.environ["OUTGOING_RECORD"], "a") as record:
            record.write(f"{name} {host}\\n")
        raise OSError(f"blocked: {name} {host}")


open(os.environ["OUTGOING_RECORD"], "a").close()
sys.addaudithook(guard)
"""
PAGES = ("/docs", "/redoc")


@dataclass(frozen=True, slots=True)
class Guarded:
    """The variables under which a Python process is watched, and what it tried."""

    environment: dict[str, str]
    record: Path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    folder = tmp_path_factory.mktemp("guard")
    (folder / "sitecustomize.py").write_text(GUARD)
    environment = {"PYTHONPATH": str(folder), "OUTGOING_RECORD": str(folder / "record")}
    return Guarded(environment, folder / "record")


@pytest.fixture(scope="module")
def server(guarded: Guarded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = str(tmp_path_factory.mktemp("no-models"))
    environment: dict[str, Any] = {**guarded.environment, "EMBEDDING_MODELS_DIR": models}
    with start_server(wait=False, **environment) as running:
        yield running


def remote_hosts(server: Server) -> set[str]:
    """What the system says: it sees libraries, too, that do without Python's sockets."""
    connections = psutil.Process(server.process.pid).net_connections("inet")
    return {connection.raddr.ip for connection in connections if connection.raddr}


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "socket.socket().connect(('192.0.2.1', 80))",
        "socket.socket().connect_ex(('192.0.2.1', 80))",
        "__import__('_socket').socket().connect(('192.0.2.1', 80))",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 80))",
        "socket.getaddrinfo('host.invalid', 80)",
        "socket.gethostbyname('host.invalid')",
        "__import__('urllib.request').request.urlopen('http://192.0.2.1/', timeout=1)",
        "__import__('httpx').get('http://192.0.2.1/', timeout=1, trust_env=False)",
    ],
)
def test_the_guard_itself_records_and_refuses(
    guarded: Guarded, tmp_path: Path, attempt: str
) -> None:
    record = tmp_path / "record"
    environment = clean_environment({**guarded.environment, "OUTGOING_RECORD": str(record)})
    environment = {k: v for k, v in environment.items() if not k.lower().endswith("_proxy")}
    script = [sys.executable, "-c", f"import socket; {attempt}"]
    ended = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "blocked: " in ended.stderr
    assert re.search(r"192\.0\.2\.1|host\.invalid", record.read_text())


def test_nothing_goes_out_at_start_or_while_serving(server: Server, guarded: Guarded) -> None:
    seen: set[str] = set()
    with server.client() as client:

        def ready_and_seen() -> bool:
            seen.update(remote_hosts(server))
            return is_ready(client)

        until(ready_and_seen)
        for path in (*PAGES, "/openapi.json", "/health", "/api/tags", "/api/ps"):
            assert client.get(path).status_code == 200
        for path in ("/api/rerank", "/v1/rerank"):
            assert client.post(path, json={"query": "a", "documents": ["b"]}).status_code == 200
        for body in ({"input": ["a", "b"]}, {"input": "a", "model": "org/other"}, {"input": 5}):
            assert client.post("/api/embed", json=body).status_code in (200, 400, 404)
        seen.update(remote_hosts(server))
    assert seen == {"127.0.0.1"}
    assert guarded.record.read_text() == ""


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_of_the_docs_load_only_what_the_server_has(server: Server, page: str) -> None:
    with server.client() as client:
        until(lambda: is_ready(client))
        html = client.get(page).text
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", html)
        assets = [url for tag in tags for url in re.findall(r"(?:src|href)=[\"']([^\"']+)", tag)]
        assert any(asset.endswith(".js") for asset in assets)
        for asset in assets:
            assert re.match(r"/(?!/)", asset), asset
            answer = client.get(asset)
            assert answer.status_code == 200, asset
            assert answer.content
        assert not re.findall(r"@import|url\(\s*[\"']?(?:https?:)?//", html)
