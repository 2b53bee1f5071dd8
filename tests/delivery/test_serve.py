"""./serve.sh in an empty checkout: sets up, serves; a second time with no network at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.servers import ROOT, clean_environment, free_port

_SETUP_TIMEOUT_S = 600.0
_NO_NETWORK = {"PIP_NO_INDEX": "1", "TORCH_INDEX_URL": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree's files, without .venv and models, as a clone would have them."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target)
    return folder


def serve(checkout: Path, log: Path, **environment: str) -> Iterator[str]:
    """The base URL once /health is 200; then SIGTERM, and exit code 0."""
    port = free_port()
    variables = {"PYTHON": os.path.realpath(sys.executable), **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["./serve.sh", "--port", str(port)],
            cwd=checkout,
            env=clean_environment(variables),
            stdout=output,
            stderr=output,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(process, url, log)
            yield url
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _SETUP_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_serve_sets_up_once_and_then_needs_no_network(checkout: Path, tmp_path: Path) -> None:
    body = {"input": ["hello", "世界"]}
    answers = []
    for name, environment in (("first", {}), ("second", _NO_NETWORK)):
        for url in serve(checkout, tmp_path / name, **environment):
            answer = httpx.post(f"{url}/api/embed", json=body, trust_env=False).json()
            answers.append((answer["model"], answer["embeddings"]))
    first, second = ((tmp_path / name).read_text() for name in ("first", "second"))
    assert answers[0] == answers[1]
    assert answers[0][0] == "all-MiniLM-L6-v2"
    assert "setting up .venv" in first
    assert "stand-in" in first
    assert "setting up" not in second
    assert "fetching" not in second
