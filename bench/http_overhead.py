"""What HTTP, routing and threads cost one short text, against a bare FastAPI route.

    python -m bench.http_overhead [--model bge-small] [--requests 400]

Two real servers on free ports of 127.0.0.1, asked in turn by one client on kept connections: ours,
whose overhead is the client's total less the time of the forward that the answer tells
(x-inference-time), and an app with a single FastAPI route that returns the very bytes of our answer
and does not even read the body. Both by uvicorn without access log.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Response

from bench import measure
from bench.http_load import MODELS, server
from bench.random_models import build

_BYTES_FILE = "BARE_ANSWER"
_PATH = "/v1/embeddings"
_BODY = json.dumps({"input": "w1 w2 w3 w4 w5 w6 w7 w8"}).encode()


def bare_app() -> FastAPI:
    """One route that answers the bytes in the file that the environment names."""
    content = Path(os.environ[_BYTES_FILE]).read_bytes()
    app = FastAPI(openapi_url=None)

    @app.post(_PATH)
    async def answer() -> Response:
        return Response(content, media_type="application/json")

    return app


@contextlib.contextmanager
def bare_server(answer: bytes) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "bench.http_overhead:bare_app", "--factory"]
    with tempfile.NamedTemporaryFile() as file:
        file.write(answer)
        file.flush()
        process = subprocess.Popen(
            [*command, "--port", str(port), "--no-access-log"],
            env={**os.environ, _BYTES_FILE: file.name},
            stderr=subprocess.DEVNULL,
        )
        try:
            while not _listens(port):
                assert process.poll() is None
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@dataclass(frozen=True, slots=True)
class Timed:
    """One exchange: milliseconds that the client saw, and those that the forward took."""

    total_ms: float
    inference_ms: float
    content: bytes


class Client:
    """One kept connection, blocking, with next to no work of its own."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc)

    def post(self) -> Timed:
        start = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", _PATH, _BODY, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        total_ms = (time.perf_counter() - start) * 1e3
        assert answer.status == 200, content
        return Timed(total_ms, float(answer.headers.get("x-inference-time", "0")), content)


def run(model_name: str, num_requests: int) -> dict[str, Any]:
    build(model_name, MODELS)
    with server(model_name, EMBEDDING_ACCESS_LOG="false") as our_url:  # noqa: SIM117
        with bare_server(Client(our_url).post().content) as bare_url:
            ours, bare = Client(our_url), Client(bare_url)
            pairs = [(ours.post(), bare.post()) for _ in range(num_requests + 20)][20:]
    overhead = sorted(mine.total_ms - mine.inference_ms for mine, _ in pairs)
    theirs = sorted(other.total_ms for _, other in pairs)
    p50, bare_p50 = statistics.median(overhead), statistics.median(theirs)
    return {
        "overhead_over_bare_route": round(p50 / bare_p50, 2),
        "overhead_ms": {"p50": round(p50, 3), "p95": round(_p95(overhead), 3)},
        "bare_route_ms": {"p50": round(bare_p50, 3), "p95": round(_p95(theirs), 3)},
        "inference_ms_p50": round(statistics.median(mine.inference_ms for mine, _ in pairs), 3),
        "answer_bytes": len(pairs[0][0].content),
        "model": model_name,
        "requests": num_requests,
    }


def _p95(ordered: list[float]) -> float:
    return ordered[int(len(ordered) * 0.95)]


def main() -> None:
    parser = argparse.ArgumentParser(description="HTTP overhead against a bare FastAPI route")
    parser.add_argument("--model", default="bge-small")
    parser.add_argument("--requests", type=int, default=400)
    arguments = parser.parse_args()
    measure.save("http-overhead", run(arguments.model, arguments.requests))


if __name__ == "__main__":
    main()
