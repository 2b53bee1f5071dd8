"""The running server, as routes see it: one model, its lane, its tokenizer thread, its state.

Routes ask it for readiness and limits; embedding.py fills it in. Must not know HTTP or torch: the
model is whatever has the few methods below.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from api.errors import ApiError
from batcher.lane import Lane
from settings import Settings


class TokenIds(Protocol):
    """A tokenized text; its cost is `len(ids)`."""

    @property
    def ids(self) -> Sequence[int]: ...


class Model(Protocol):
    """What the HTTP side needs of a loaded model. Lengths count special tokens."""

    name: str
    dim: int
    max_length: int

    def tokenize(
        self, texts: Sequence[str], max_length: int, truncate: bool, first_index: int
    ) -> Sequence[TokenIds]: ...

    def run(self, step: Sequence[Any]) -> Any: ...

    def describe(self) -> dict[str, str | int]: ...


@dataclass(frozen=True, slots=True)
class Serving:
    """What one admitted request works with, until its end, also while the server drains."""

    model: Model
    lane: Lane
    settings: Settings


class Service:
    """`state` is starting, ready, draining or failed; `reason` says why it is not ready."""

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.model: Model | None = None
        self.lane: Lane | None = None
        self.is_stand_in = False
        self.load_s = 0.0
        self.state = "starting"
        self.reason = "starting"
        self.tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self.num_requests = 0  # being answered now

    def start(self, model: Model, lane: Lane, is_stand_in: bool, load_s: float) -> None:
        """From here on requests are served."""
        self.model, self.lane, self.is_stand_in, self.load_s = model, lane, is_stand_in, load_s
        if self.state == "starting":
            self.state, self.reason = "ready", ""

    def drain(self) -> None:
        """Refuse new requests; those that were admitted go on."""
        self.state, self.reason = "draining", "the server is shutting down"

    @property
    def unready_because(self) -> str:
        """Empty when requests are served."""
        if self.state != "ready":
            return self.reason
        assert self.lane is not None
        return "" if self.lane.alive else "the compute thread has died"

    def admit(self) -> Serving:
        """Raises 503 while no request is served."""
        reason = self.unready_because
        if reason:
            raise ApiError(503, reason, {"Retry-After": "5"})
        assert self.model is not None
        assert self.lane is not None
        assert self.settings is not None
        return Serving(self.model, self.lane, self.settings)

    async def tokenize(
        self, model: Model, texts: Sequence[str], max_length: int, truncate: bool
    ) -> list[TokenIds]:
        """On the tokenizer thread, in small parts, so that a bulk job lets a query pass."""
        loop = asyncio.get_running_loop()
        tokens: list[TokenIds] = []
        for first, part in _parts(texts):
            tokens += await loop.run_in_executor(
                self.tokenizer_thread, model.tokenize, part, max_length, truncate, first
            )
        return tokens


_PART_TEXTS = 64
_PART_CHARS = 64_000  # about 20 ms of one core


def _parts(texts: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Consecutive texts with the index of each part's first."""
    parts: list[tuple[int, list[str]]] = []
    num_chars = 0
    for index, text in enumerate(texts):
        if not parts or len(parts[-1][1]) == _PART_TEXTS or num_chars + len(text) > _PART_CHARS:
            parts.append((index, []))
            num_chars = 0
        parts[-1][1].append(text)
        num_chars += len(text)
    return parts
