"""One real server for all clients, the oracles of its models, and no way out of this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.random_models import build
from engine.folder.store import default_models
from tests.clients.expected import M3, MINILM, RERANKER, ExpectedScores, ExpectedVectors
from tests.servers import Server, start_server

_HERE = ("127.0.0.1", "::1", "localhost")
_QUIET = {
    "NO_PROXY": "*",
    "HF_HUB_OFFLINE": "1",
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
}
_UNSET = (
    *("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
    *("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "OLLAMA_HOST", "OLLAMA_API_KEY"),
    *("CO_API_KEY", "CO_API_URL", "COHERE_API_KEY", "JINAAI_API_KEY"),
)


@pytest.fixture(autouse=True)
def no_way_out(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What leaves this machine is refused; a test whose client tries, even silently, fails."""
    attempts: list[str] = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def refuse(host: Any) -> None:
        if host not in _HERE:
            attempts.append(str(host))
            raise OSError(f"a client wants to leave this machine: {host}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse(address[0])
        connect(self, address)

    def guarded_resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        refuse(host.decode() if isinstance(host, bytes) else host)
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_resolve)
    for name, value in _QUIET.items():
        monkeypatch.setenv(name, value)
    for name in _UNSET:
        monkeypatch.delenv(name, raising=False)
    yield
    assert attempts == []


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM's real weights, a tiny reranker, a tiny bge-m3."""
    root: Path = tmp_path_factory.mktemp("client-models")
    (stand_in,) = default_models(root / "empty")
    (root / MINILM).symlink_to(stand_in.path)
    for name in (RERANKER, M3):
        build(name, root)
    return root


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[Server]:
    """MiniLM is the default; all three are in memory from the start."""
    environment = {
        "EMBEDDING_MODELS_DIR": str(models),
        "EMBEDDING_MODEL": f"{MINILM},{RERANKER},{M3}",
        "EMBEDDING_DEVICE": "cpu",
    }
    with start_server(**environment) as running:  # type: ignore[arg-type]
        yield running


@pytest.fixture(scope="session")
def vectors(models: Path) -> ExpectedVectors:
    return ExpectedVectors(models / MINILM)


@pytest.fixture(scope="session")
def scores(models: Path) -> ExpectedScores:
    return ExpectedScores(models / RERANKER)


@pytest.fixture
def cl100k_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """tiktoken's own cl100k_base from the cache folder that llama-index ships: no download."""
    import llama_index.core

    folder = Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
