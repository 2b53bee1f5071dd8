"""Real server processes on free ports of 127.0.0.1, stopped by the test that started them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

ROOT = Path(__file__).parent.parent
_READY_TIMEOUT_S = 120.0


@dataclass(slots=True)
class Server:
    """A running `uvicorn embedding:app`."""

    process: subprocess.Popen[bytes]
    port: int
    output: IO[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False, **options)

    def embed(self, body: Any, **options: Any) -> httpx.Response:
        with self.client() as client:
            return client.post("/api/embed", json=body, **options)

    def log(self) -> str:
        """All that the process has written so far."""
        self.output.seek(0)
        return self.output.read().decode()

    def wait_until_ready(self) -> None:
        """Raises AssertionError with the log when the process ends or takes too long."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        with self.client() as client:
            while time.monotonic() < deadline:
                assert self.process.poll() is None, self.log()
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/health").status_code == 200:
                        return
                time.sleep(0.05)
        raise AssertionError(f"not ready in {_READY_TIMEOUT_S} s: {self.log()}")

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60) -> int:
        """Send the signal, wait, give the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's variables without any setting or hub variable, plus `extra`. Numbers are the
    same on every processor, unless `extra` says otherwise."""
    dropped = ("EMBEDDING_", "HF_", "TRANSFORMERS_", "TORCH_DEVICE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    return {**kept, "EMBEDDING_DTYPE": "float32", **extra}


@contextlib.contextmanager
def start_server(
    *flags: str,
    app: str = "embedding:app",
    wait: bool = True,
    cwd: Path = ROOT,
    **environment: str,
) -> Iterator[Server]:
    """`uvicorn embedding:app` with settings as keyword arguments; killed at the end if need be."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), *flags]
    with tempfile.TemporaryFile("a+b") as output:  # appends: reading moves no writer
        process = subprocess.Popen(
            command, cwd=cwd, env=clean_environment(environment), stdout=output, stderr=output
        )
        server = Server(process, port, output)
        try:
            if wait:
                server.wait_until_ready()
            yield server
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
