"""A body that does not come to its end gives its place back, by its own timeout or the server's."""

from __future__ import annotations

import socket

from tests.serving.fake_engine import FakeServer, serve_fake, until

FOREVER_S = 86_400


def begin(server: FakeServer, *headers: str, length: int = 100) -> socket.socket:
    """A request whose body stays unfinished."""
    port = int(server.url.rpartition(":")[2])
    lines = ["POST /api/embed HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers]
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(("\r\n".join(lines) + '\r\n\r\n{"input": ').encode())
    return connection


def answer_of(connection: socket.socket) -> bytes:
    with connection:
        return connection.makefile("rb").read()


def until_free(server: FakeServer) -> None:
    admission = server.serving.admission
    until(lambda: admission.num_requests == 0)


def test_a_body_that_stalls_is_a_408_and_frees_its_place() -> None:
    with serve_fake(max_queue_requests=1, body_timeout_s=0.2) as server:
        told = answer_of(begin(server))
        assert told.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in told.lower()
        assert b'{"error":"the body was not there after 0.2 s (body_timeout_s)"}' in told
        until_free(server)
        assert server.embed({"input": "a"}).status_code == 200


def test_a_requests_own_timeout_counts_while_its_body_comes() -> None:
    with serve_fake(max_queue_requests=1) as server:
        told = answer_of(begin(server, "x-request-timeout: 0.2"))
        assert told.startswith(b"HTTP/1.1 503")
        assert b"not done within 0.2 s (x-request-timeout)" in told
        assert b"retry-after: " in told
        until_free(server)


def test_the_setting_counts_while_a_body_comes() -> None:
    with serve_fake(max_queue_requests=1, request_timeout_s=0.2) as server:
        told = answer_of(begin(server, f"x-request-timeout: {FOREVER_S}"))
        assert b"not done within 0.2 s (request_timeout_s)" in told
        until_free(server)


def test_a_body_that_is_too_large_is_told_so_however_slowly_the_rest_comes() -> None:
    with serve_fake(max_queue_requests=1, max_body_bytes=1024, body_timeout_s=1.0) as server:
        with begin(server, "x-request-timeout: 0.5", length=15_000) as connection:
            connection.sendall(b"x" * 2_000)
            told = connection.makefile("rb").readline()
        assert told.startswith(b"HTTP/1.1 413")
        until_free(server)
