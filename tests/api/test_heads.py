"""Heads of requests and connections: limits of size, number and time, before any key is read."""

from __future__ import annotations

import logging
import socket

import pytest

from tests.servers import Server
from tests.serving.fake_engine import FakeServer, serve_fake, until

LINE = b"GET /live HTTP/1.1\r\nHost: x\r\n"
SIZE = 2048


def connect(server: FakeServer) -> socket.socket:
    port = int(server.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def ask(server: FakeServer, *sent: bytes) -> bytes:
    """Everything that comes until the server closes."""
    with connect(server) as connection:
        for part in sent:
            try:
                connection.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                break
        told = b""
        try:
            while part := connection.recv(65_536):
                told += part
        except ConnectionResetError:
            pass
        return told


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ([LINE, b"a: " + b"x" * SIZE + b"\r\n\r\n"], 431),
        ([LINE, b"a: " + b"x" * SIZE * 2], 431),
        ([LINE, b"a" * SIZE * 2], 431),
        ([LINE + b"a: " + b"x" * SIZE + b"\r\n\r\n" + LINE + b"\r\n"], 431),
        (
            [LINE + b"Upgrade: websocket\r\nConnection: upgrade\r\n" + b"a: b\r\n" * 201 + b"\r\n"],
            431,
        ),
        ([LINE, b"a: b\r\n" * 201 + b"\r\n"], 431),
        ([b"GET /" + b"x" * SIZE + b" HTTP/1.1\r\n\r\n"], 414),
        ([b"GET /" + b"x" * SIZE * 2], 414),
    ],
    ids=[
        "a large header",
        "an endless value",
        "an endless name",
        "another behind",
        "an upgrade",
        "many",
        "a URL",
        "endless URL",
    ],
)
def test_a_head_that_is_too_large_is_refused_before_the_key(sent: list[bytes], status: int) -> None:
    with serve_fake(max_head_bytes=SIZE, api_key="k") as server:
        told = ask(server, *sent)
        assert told.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"(max_head_bytes)" in told
        assert told.count(b"HTTP/1.1") == 1
        assert server.get("/live").status_code == 200


def test_a_usual_head_passes_again_and_again_on_one_connection() -> None:
    with serve_fake(max_head_bytes=SIZE) as server, server.client() as client:
        for _ in range(5):
            assert client.get("/live", headers={"a": "x" * 1000}).status_code == 200
            assert client.post("/api/embed", json={"input": "a" * 5000}).status_code == 200


def test_a_head_that_does_not_come_to_its_end_is_a_408() -> None:
    with serve_fake(head_timeout_s=0.2) as server:
        told = ask(server, LINE)
        assert told.startswith(b"HTTP/1.1 408 ")
        assert b"the head was not there after 0.2 s (head_timeout_s)" in told
        assert ask(server) == b""


def test_a_body_may_take_longer_than_a_head() -> None:
    with serve_fake(head_timeout_s=0.1, body_timeout_s=0.5) as server:
        head = b"POST /api/embed HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        assert b"the body was not there" in ask(server, head)


def test_connections_beyond_the_limit_are_closed_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("embedding").propagate = True
    with serve_fake(max_connections=3) as server:
        held = [connect(server) for _ in range(3)]
        with caplog.at_level("WARNING", "embedding"):
            until(lambda: ask(server, LINE + b"\r\n") == b"")
            until(lambda: "3 are open (max_connections)" in caplog.text)
        for connection in held:
            connection.close()

        def answers() -> bool:
            return ask(server, LINE + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")

        until(answers)


def test_a_server_started_by_uvicorn_has_the_limits(stand_in_server: Server) -> None:
    """The protocol is put in place while the app starts."""
    for sent, status in ((b"a: " + b"x" * 70_000 + b"\r\n\r\n", 431), (b"\r\n", 200)):
        with socket.create_connection(("127.0.0.1", stand_in_server.port), timeout=60) as client:
            client.sendall(LINE + sent)
            assert client.recv(65_536).startswith(b"HTTP/1.1 %d " % status)
