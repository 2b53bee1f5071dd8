"""The running server, as routes see it: its models, its lane, its tokenizer thread, its state.

Routes ask it for readiness, limits and models; serving/lifecycle.py fills it in. Must not know
HTTP or torch: a model is whatever has the few methods below.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import Request

from api.http.errors import ApiError
from api.http.leaving import cancelled_when_client_leaves
from batcher.admission import Admission, Place, Rate
from batcher.lane import Lane
from engine.recipe import Recipe
from engine.store import ModelFolder
from engine.tokens import PairLimits, TextLimits, Token
from serving.catalog import Catalog, Entry
from serving.deadline import Deadline, given_up_at, too_late
from serving.metrics import Metrics
from serving.parts import is_little, split
from serving.residents import Resident, Residents
from serving.row_cache import RowCache
from settings import Settings

T = TypeVar("T")
R = TypeVar("R")


class TokenIds(Protocol):
    """A tokenized text or pair."""

    @property
    def ids(self) -> Sequence[int]: ...

    def key(self) -> Hashable: ...


class Model(Protocol):
    """What the HTTP side needs of any loaded model. Lengths count special tokens."""

    name: str
    dim: int
    max_length: int
    views: tuple[str, ...]
    is_reranker: bool
    vocab_size: int

    def costs(self, sequences: Sequence[Any]) -> list[int]: ...

    def run(self, step: Sequence[Any]) -> Any: ...

    def describe(self) -> dict[str, str | int]: ...

    def spell(self, text: str, add_special_tokens: bool, prompt: str) -> list[Token]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool, index: int) -> str: ...


class Embedder(Model, Protocol):
    """Rows of `run` are engine.views.Views."""

    def prompt(
        self, prompt_name: str | None, input_type: str | None, instruction: str | None
    ) -> str: ...

    def tokenize(
        self,
        texts: Sequence[str],
        limits: TextLimits,
        prompt: str,
        views: tuple[str, ...],
        first_index: int,
    ) -> Sequence[TokenIds]: ...

    def tokens_of(
        self,
        ids: Sequence[Sequence[int]],
        limits: TextLimits,
        views: tuple[str, ...],
        first_index: int,
    ) -> Sequence[TokenIds]: ...

    def token_texts(self, token_ids: Sequence[int]) -> list[str]: ...


class Reranker(Model, Protocol):
    """Rows of `run` are raw scores."""

    def tokenize_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        limits: PairLimits,
        instruction: str | None,
        first_index: int,
    ) -> Sequence[TokenIds]: ...


@dataclass(frozen=True, slots=True)
class Serving:
    """What one admitted request works with, until its end, also while the server drains."""

    resident: Resident
    lane: Lane
    settings: Settings
    place: Place
    deadline: Deadline | None

    @property
    def model(self) -> Any:
        """An Embedder or a Reranker; it is there as long as the lease lasts."""
        assert self.resident.model is not None
        return self.resident.model

    @property
    def left_s(self) -> float | None:
        """Of the request's timeout; None without one."""
        return None if self.deadline is None else self.deadline.left_s()


class Service:
    """`state` is starting, ready, draining or failed; `reason` says why it is not ready."""

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.catalog: Catalog | None = None
        self.residents: Residents | None = None
        self.lane: Lane | None = None
        self.rate = Rate()
        self.admission: Admission | None = None
        self.state = "starting"
        self.reason = "starting"
        self.tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._tokenizer_lock = threading.Lock()
        self.num_requests = 0  # being answered now
        self.unanswered: set[asyncio.Task[Any]] = set()  # those of them without a first byte
        self.num_answered = 0
        self.row_cache = RowCache(0)
        self.metrics = Metrics(self)

    def start(self, catalog: Catalog, residents: Residents, lane: Lane) -> None:
        """From here on requests are served."""
        self.catalog, self.residents, self.lane = catalog, residents, lane
        assert self.settings is not None
        max_tokens, max_jobs = self.settings.max_queue_tokens, self.settings.max_queue_jobs
        self.admission = Admission(max_tokens, max_jobs, self.rate, lane.max_urgent_tokens)
        self.row_cache = RowCache(self.settings.cache_bytes)
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
        assert self.settings is not None
        if not self.lane.alive:
            return "the compute thread has died"
        running_s = self.lane.running_s
        if running_s > self.settings.step_timeout_s:
            return f"the compute thread hangs: a step has been running for {running_s:.0f} s"
        return ""

    @property
    def refusal(self) -> ApiError | None:
        """What requests are told while none is served."""
        reason = self.unready_because
        return ApiError(503, reason, {"Retry-After": "5"}) if reason else None

    def admit(self) -> Settings:
        """Raises 503 while no request is served."""
        if refusal := self.refusal:
            raise refusal
        assert self.settings is not None
        return self.settings

    def find(self, asked: str | None) -> ModelFolder:
        """The folder that a request's `model` means; the default when absent. Raises 404."""
        assert self.catalog is not None
        if not asked:
            return self.catalog.default
        folder = self.catalog.find(asked)
        if folder is None:
            message = f"model '{asked}' not found"
            raise ApiError(404, message, param="model", code="model_not_found")
        return folder

    async def entry(self, asked: str | None) -> Entry:
        """What is known of a model without loading it. Raises 404."""
        assert self.catalog is not None
        return await asyncio.to_thread(self.catalog.entry, self.find(asked))

    async def find_reranker(self, asked: str | None) -> ModelFolder:
        """The same for a request to rerank, whose default is a reranker where there is one."""
        assert self.catalog is not None
        if asked:
            return self.find(asked)
        assert self.residents is not None
        return await asyncio.to_thread(self.catalog.default_reranker, self.residents.failures)

    async def recipe_before_loading(self, folder: ModelFolder) -> Recipe | None:
        """What a model that is not in memory will be; None for one that is, or that will fail."""
        assert self.catalog is not None
        assert self.residents is not None
        if self.residents.get(folder.name) is not None:
            return None
        return (await asyncio.to_thread(self.catalog.entry, folder)).recipe

    @contextlib.asynccontextmanager
    async def lease(
        self, request: Request, folder: ModelFolder, keep_alive_s: float | None = None
    ) -> AsyncIterator[Serving]:
        """Use a model, loaded first if need be, until the block, its client or its time is gone.

        Raises LoadFailed, LoadTimeout, NoRoom or ClientLeft, and 503 when its deadline has passed.
        """
        assert self.residents is not None
        assert self.lane is not None
        assert self.settings is not None
        state = request.scope["state"]
        assert "place" in state, "this route is not in entrance.WORK"
        place, deadline = state["place"], state["deadline"]
        async with (
            cancelled_when_client_leaves(request),
            self.in_time(deadline),
            self.residents.lease(folder, keep_alive_s) as resident,
        ):
            yield Serving(resident, self.lane, self.settings, place, deadline)

    def in_time(self, deadline: Deadline | None) -> contextlib.AbstractAsyncContextManager[None]:
        """A block that ends with 503 when the deadline passes."""
        if deadline is None:
            return contextlib.nullcontext()
        admission = self.admission
        assert admission is not None
        return given_up_at(deadline.ends_at, lambda: too_late(deadline, admission.retry_after_s))

    async def in_parts(
        self, items: Sequence[T], work: Callable[[list[T], int], Sequence[R]]
    ) -> AsyncIterator[Sequence[R]]:
        """`work(part, index of its first)` on the tokenizer thread, part after small part, so
        that a bulk job lets a query pass. Items are texts, pairs of texts, or lists of ids."""
        if is_little(items) and self._tokenizer_lock.acquire(blocking=False):
            try:  # nobody is at it: a hop to the thread and back would cost more than the work
                rows = work(list(items), 0)
            finally:
                self._tokenizer_lock.release()
            yield rows
            return
        for first, part in split(items):
            yield await self.on_tokenizer_thread(functools.partial(work, part, first))

    async def on_tokenizer_thread(self, work: Callable[[], T]) -> T:
        """Tokenizers serve one caller at a time."""

        def locked() -> T:
            with self._tokenizer_lock:
                return work()

        return await asyncio.get_running_loop().run_in_executor(self.tokenizer_thread, locked)
