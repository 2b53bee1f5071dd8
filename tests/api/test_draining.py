"""What a stopping server tells those who wait for anything but the worker: the same as all."""

from __future__ import annotations

import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.servers import Server, start_server
from tests.serving.fake_engine import until
from tests.serving.fake_models import write_model

HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"


def num_open(server: Server) -> int:
    with server.client() as client:
        return int(client.get("/health").json()["admitted_requests"])


def test_who_waits_for_a_model_or_sends_a_body_past_the_drain_timeout_gets_a_503(
    tmp_path: Path,
) -> None:
    for name in ("ready", "endless"):
        write_model(tmp_path, name)
    with (
        start_server(
            "--factory",
            app="tests.serving.endless_loads:app_of_endless_loads",
            EMBEDDING_MODELS_DIR=str(tmp_path),
            EMBEDDING_MODEL="ready",
            EMBEDDING_MAX_MODEL_BYTES="1GB",
            EMBEDDING_DRAIN_TIMEOUT_S="0.5",
        ) as server,
        ThreadPoolExecutor(1) as pool,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as sending,
    ):
        loading = pool.submit(server.embed, {"model": "endless", "input": "a"})
        sending.sendall(HEAD + b'{"input": ')
        until(lambda: num_open(server) == 2)
        assert server.stop(signal.SIGTERM) == 0
        answer = loading.result()
        assert answer.status_code == 503
        assert answer.json() == {"error": "the server is shutting down"}
        assert answer.headers["x-request-id"]
        told = sending.makefile("rb").read()
        assert told.startswith(b"HTTP/1.1 503")
        assert b'{"error":{"message":"the server is shutting down"' in told
        assert "Traceback" not in server.log()
