"""The two states of a server, each a complete record; and one admitted request, with who waits for
it and until when.

A request's way (embedding, scoring, rows) sees a Call and what is in it, never the Server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from batcher.admission import Admission, Reservation
from batcher.worker import Worker
from engine.folder.store import ModelFolder
from serving.errors import CallerGone, NotFound, NotReady, TooLate
from serving.metrics import Metrics
from serving.models.catalog import Catalog, Entry
from serving.models.resident import Resident
from serving.models.residents import Residents
from serving.row_cache import RowCache
from serving.rows import TokenizerThread
from settings import Settings

Gone = Callable[[], Awaitable[object]]  # returns when the caller has left


RETRY_S = 5  # for who comes before the server is ready


@dataclass(frozen=True, slots=True)
class Deadline:
    """`source` is what set it; `ends_at` is the event loop's time; `retry_after_s` estimates when
    to ask again."""

    timeout_s: float
    source: str
    ends_at: float
    retry_after_s: Callable[[], int | None] = lambda: None

    def left_s(self) -> float:
        return self.ends_at - asyncio.get_running_loop().time()

    def passed(self) -> Exception:
        """What is raised when the time has come."""
        message = f"not done within {self.timeout_s:g} s ({self.source})"
        return TooLate(message, self.retry_after_s())


def earliest(
    *timeouts: tuple[float | None, str], retry_after_s: Callable[[], int | None]
) -> Deadline | None:
    """The deadline of the shortest timeout, counted from now; each comes with its source."""
    given = [(timeout_s, source) for timeout_s, source in timeouts if timeout_s is not None]
    if not given:
        return None
    timeout_s, source = min(given)
    ends_at = asyncio.get_running_loop().time() + timeout_s
    return Deadline(timeout_s, source, ends_at, retry_after_s)


@contextlib.asynccontextmanager
async def while_waited_for(
    deadline: Deadline | None = None, gone: Gone | None = None
) -> AsyncIterator[None]:
    """Cancels the block when its time has come or its caller has left.

    Raises what `deadline.passed()` gives, or CallerGone.
    """
    worker = asyncio.current_task()
    assert worker is not None
    reasons: list[Exception] = []

    def give_up(reason: Exception) -> None:
        reasons.append(reason)
        worker.cancel()

    async def watch(gone: Gone) -> None:
        await gone()
        give_up(CallerGone())

    timer = watcher = None
    if deadline is not None:
        if deadline.left_s() <= 0:
            raise deadline.passed()
        loop = asyncio.get_running_loop()
        timer = loop.call_at(deadline.ends_at, lambda: give_up(deadline.passed()))
    if gone is not None:
        watcher = asyncio.create_task(watch(gone))
    try:
        yield
    except asyncio.CancelledError:
        if reasons:
            raise reasons[0] from None
        raise
    finally:
        if timer is not None:
            timer.cancel()
        if watcher is not None:
            watcher.cancel()


@dataclass(slots=True)
class Starting:
    """Nothing is served yet, or, after a failure, ever."""

    settings: Settings
    fault: str = "starting"
    has_failed: bool = False

    def admit(self, *timeout: object) -> contextlib.AbstractContextManager[Call]:
        raise NotReady(self.fault, RETRY_S)


@dataclass(slots=True)
class Serving:
    """Everything that a request needs, also while the server drains."""

    settings: Settings
    catalog: Catalog
    residents: Residents
    worker: Worker
    metrics: Metrics
    admission: Admission = field(init=False)
    row_cache: RowCache | None = field(init=False)
    tokenizer: TokenizerThread = field(default_factory=TokenizerThread)
    is_draining: bool = False

    def __post_init__(self) -> None:
        settings = self.settings
        self.admission = Admission(
            settings.max_queue_tokens,
            settings.max_queue_requests,
            self.metrics.rate,
            self.worker.max_urgent_tokens,
        )
        self.row_cache = RowCache(settings.cache_bytes) if settings.cache_bytes else None

    @property
    def fault(self) -> str:
        """Why no request is served; empty when they are."""
        if self.is_draining:
            return "the server is shutting down"
        if not self.worker.alive:
            return "the compute thread has died"
        running_s = self.worker.running_s
        if running_s > self.settings.batch_timeout_s:
            return f"the compute thread hangs: a batch has been running for {running_s:.0f} s"
        return ""

    @contextlib.contextmanager
    def admit(
        self, timeout_s: float | None = None, source: str = "timeout_s", gone: Gone | None = None
    ) -> Iterator[Call]:
        """Take a request in, before anything of it is read; it is open until the block ends.

        Its time is over after `timeout_s`, which `source` has set, or after the setting's seconds.
        Raises NotReady or Overloaded.
        """
        if fault := self.fault:
            raise NotReady(fault, RETRY_S)
        setting_s = self.settings.request_timeout_s
        deadline = None
        if timeout_s is not None or setting_s is not None:
            deadline = earliest(
                (timeout_s, source),
                (setting_s, "request_timeout_s"),
                retry_after_s=lambda: self.admission.retry_after_s,
            )
        with self.admission.admit() as reservation:
            yield Call(self, reservation, deadline, gone)

    async def find(self, asked: str | None) -> ModelFolder:
        """The folder that a request's `model` means; the default when absent. Raises NotFound.

        The disk is looked at on a thread, and not at all for what is loaded at start.
        """
        if not asked:
            return self.catalog.pinned[0]
        folder = self.catalog.find_pinned(asked)
        if folder is None:
            folder = await asyncio.to_thread(self.catalog.find, asked)
        if folder is None:
            raise NotFound(f"model '{asked}' not found", "model", "model_not_found")
        return folder

    async def entry(self, asked: str | None) -> Entry:
        """What is known of a model without loading it. Raises NotFound."""
        folder = await self.find(asked)
        return await asyncio.to_thread(self.catalog.entry, folder)

    async def find_reranker(self, asked: str | None) -> ModelFolder:
        """The same for a request to rerank, whose default is a reranker where there is one."""
        if asked:
            return await self.find(asked)
        for folder in self.catalog.pinned:  # those are in memory
            resident = self.residents.get(folder.name)
            if resident is not None and resident.model is not None and resident.model.is_reranker:
                return folder
        return await asyncio.to_thread(self.catalog.default_reranker, self.residents.failures)


@dataclass(frozen=True, slots=True)
class Call:
    """One admitted request, from its first byte to its answer.

    `gone` returns when the caller has left; it is asked only once the whole request is there.
    """

    serving: Serving
    reservation: Reservation
    deadline: Deadline | None = None
    gone: Gone | None = None

    @contextlib.asynccontextmanager
    async def lease(
        self, folder: ModelFolder, keep_alive_s: float | None = None
    ) -> AsyncIterator[Resident]:
        """Use a model, loaded first if need be, until the block, its caller or its time is gone.

        Raises LoadFailed, LoadTimeout, NoRoom, CallerGone or TooLate.
        """
        async with (
            while_waited_for(self.deadline, self.gone),
            self.serving.residents.lease(folder, keep_alive_s) as resident,
        ):
            yield resident
