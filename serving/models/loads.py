"""The slow work around a model's folder, off the event loop: measuring, loading, freeing.

Owns what is known of folders that cannot be served: a failure is told again without another try
until a file of its folder changes. Must not know which models are in memory, or torch: how to
measure, load and release is passed in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from engine.errors import ModelError
from engine.folder.store import ModelFolder
from serving.errors import Unavailable

T = TypeVar("T")
log = logging.getLogger("embedding.residents")

_State = tuple[tuple[str, int, int, int], ...]  # path, bytes, mtime and ctime of a folder's files


class LoadFailed(Unavailable):
    """The folder cannot be served. The text is for callers; `reason` may name paths."""

    def __init__(self, folder: ModelFolder, reason: str, is_news: bool = False) -> None:
        """`is_news` when it was tried just now."""
        super().__init__(f"model {folder.name!r} cannot be served: {_without_path(folder, reason)}")
        self.reason, self.is_news = reason, is_news


@dataclass(frozen=True, slots=True)
class _Failure:
    folder: ModelFolder
    state: _State  # when it was tried
    reason: str


class Loader:
    """`load`, `measure` and `release` block; here they run on daemon threads."""

    def __init__(
        self,
        load: Callable[[ModelFolder], Any],
        measure: Callable[[ModelFolder], int],
        release: Callable[[], None],
    ) -> None:
        self._load, self._measure, self._release = load, measure, release
        self._one_release = asyncio.Lock()
        self._releases: set[asyncio.Task[None]] = set()
        self._known: dict[str, _Failure] = {}

    @property
    def failures(self) -> dict[str, str]:
        """Why what was tried cannot be served, in words for callers, by name."""
        return {
            name: _without_path(known.folder, known.reason)
            for name, known in self._known.items()
            if os.path.isdir(known.folder.path)
        }

    async def measure(self, folder: ModelFolder) -> int:
        """Bytes that loading needs. Raises LoadFailed."""
        return await self._try(self._measure, folder)

    async def load(self, folder: ModelFolder) -> Any:
        """Raises LoadFailed."""
        return await self._try(self._load, folder)

    def free(self, dropped: list[Any]) -> None:
        """Let go of what is in the list and return its memory, in the background."""

        def work() -> None:
            dropped.clear()  # here, not on the loop: unmapping gigabytes takes a while
            self._release()

        async def run() -> None:
            async with self._one_release:
                try:
                    await on_daemon_thread(work)
                except Exception:
                    log.exception("memory was not given back")

        task = asyncio.create_task(run())
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def freed(self) -> None:
        """Until all memory is back that `free` was given so far."""
        if self._releases:
            await asyncio.wait(self._releases)

    async def _try(self, work: Callable[[ModelFolder], T], folder: ModelFolder) -> T:
        state = await on_daemon_thread(lambda: _read_state(folder))
        known = self._known.get(folder.name)
        if known and known.state == state:
            raise LoadFailed(folder, known.reason)
        self._known.pop(folder.name, None)
        if not state:
            raise LoadFailed(folder, f"{folder.path}: gone or empty")
        is_lasting = True
        try:
            return await on_daemon_thread(lambda: work(folder))
        except ModelError as error:
            reason = str(error)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # a panic in the tokenizers' Rust is no Exception
            log.exception("model %s: loading failed", folder.name)
            reason = f"{folder.path}: loading failed: {type(error).__name__}"
            is_lasting = not isinstance(error, MemoryError)
        if is_lasting:
            self._known[folder.name] = _Failure(folder, state, reason)
        raise LoadFailed(folder, reason, is_news=True)


async def on_daemon_thread(work: Callable[[], T]) -> T:
    """Like `asyncio.to_thread`, but a process that stops meanwhile need not wait for it, and once
    this returns neither the thread nor a future refers to the result."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    results: list[T] = []
    errors: list[BaseException] = []

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    def main() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        with contextlib.suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(end)

    threading.Thread(target=main, name="loader", daemon=True).start()
    await ended
    if errors:
        raise errors.pop()
    return results.pop()


def _read_state(folder: ModelFolder) -> _State:
    """Empty when nothing is there. Change times tell a file whose permissions were mended."""
    state = []
    for parent, _, names in os.walk(folder.path):
        for path in (os.path.join(parent, name) for name in names):
            with contextlib.suppress(OSError):  # a dangling link
                found = os.stat(path)
                state.append((path, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return tuple(sorted(state))


def _without_path(folder: ModelFolder, text: str) -> str:
    """Callers are not told where on this machine the folder lies."""
    path = str(folder.path)
    for shown in sorted({os.path.realpath(path), os.path.abspath(path), path}, key=len)[::-1]:
        text = text.replace(shown, folder.name)
    return text
