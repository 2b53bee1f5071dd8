"""The Python door: the running server in this process, synchronous or asyncio.

Requests go the same way as those of the HTTP routes `/api/embed` and `/rerank`, with the same
limits and errors. The synchronous server keeps an event loop on a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.outputs import Weights
from serving.configuration import read_settings
from serving.embedding import EmbedRequest, PromptChoice, embed
from serving.errors import Unavailable
from serving.scoring import ScoreRequest, score
from serving.server import Server

T = TypeVar("T")
_END_S = 1.0  # for calls that wait while the server closes
_NO_WEIGHT = {"dense": 0.0, "sparse": 0.0, "colbert": 0.0}


class AsyncLocalServer:
    """`async with AsyncLocalServer(model="bge-m3") as server: await server.embed(texts)`

    Any setting may be given by name; the others come from the environment and `.env`. Raises
    BadSetting, and CannotStart where the block begins. It belongs to one event loop.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        if model is not None:
            settings["model"] = model
        self._server = Server(read_settings(**settings))

    async def __aenter__(self) -> AsyncLocalServer:
        try:
            await self._server.start()
        except BaseException:
            await self._server.close()
            raise
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def close(self) -> None:
        """What is still open fails with WorkerClosed or Unavailable. Twice is harmless."""
        await self._server.close()

    async def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str | None = None,
        truncate: bool = True,
        truncation_side: Any = "right",
        max_length: int | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
        prompt_name: str | None = None,
        input_type: str | None = None,
        instruction: str | None = None,
        outputs: Sequence[str] | None = None,
        keep_alive: float | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """float32 `[n, dim]`, a row a text in input order, L2-normalized unless told otherwise.

        With `outputs` (of dense, sparse, colbert), a dictionary of them: sparse is weights by token
        id, colbert a `[tokens, dim]` array, one a text. `keep_alive` and `timeout_s` are seconds,
        lengths are tokens with special ones. Raises InvalidRequest, NotFound, Overloaded, TooLate,
        Unavailable, and the engine's errors about texts.
        """
        wanted = EmbedRequest(
            [texts] if isinstance(texts, str) else texts,
            "texts",
            truncate=truncate,
            truncation_side=truncation_side,
            max_length=max_length,
            prompt=PromptChoice(prompt_name, input_type, instruction),
            outputs=tuple(dict.fromkeys(outputs or ("dense",))),
            dimensions=dimensions,
            normalize=normalize,
            keep_alive_s=keep_alive,
        )
        with self._server.state.admit(timeout_s) as call:
            embedded = (await embed(call, model, wanted)).outputs
        if outputs is not None:
            return embedded
        return embedded["dense"] if len(wanted.texts) else np.empty((0, 0), np.float32)

    async def score(
        self,
        query: str | Sequence[str],
        documents: Sequence[str],
        *,
        model: str | None = None,
        truncate: bool = True,
        truncation_side: Any = "right",
        max_length: int | None = None,
        max_tokens_per_doc: int | None = None,
        instruction: str | None = None,
        raw_scores: bool = False,
        weights: Mapping[str, float] | None = None,
        keep_alive: float | None = None,
        timeout_s: float | None = None,
    ) -> NDArray[np.float32]:
        """float32 `[n]`, a score a document in input order: from 0 to 1 by a reranker unless
        `raw_scores`, a similarity by an embedder, whose outputs `weights` weighs.

        One query for all documents, or a list of as many. Raises what `embed` raises.
        """
        wanted = ScoreRequest(
            [query] if isinstance(query, str) else query,
            documents,
            truncate=truncate,
            truncation_side=truncation_side,
            max_length=max_length,
            max_document=max_tokens_per_doc,
            instruction=instruction,
            weights=None if weights is None else Weights(**{**_NO_WEIGHT, **weights}),
            keep_alive_s=keep_alive,
        )
        with self._server.state.admit(timeout_s) as call:
            return (await score(call, model, wanted)).scores(raw_scores)


class LocalServer:
    """`with LocalServer(model="bge-m3") as server: server.embed(texts)`

    AsyncLocalServer for synchronous programs: the same settings, methods and errors. Any number of
    threads may call it.
    """

    def __init__(self, model: str | None = None, **settings: Any) -> None:
        self._server = AsyncLocalServer(model, **settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LocalServer:
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="local-server", daemon=True)
        self._thread.start()
        try:
            self._run(self._server.__aenter__())
        except BaseException:
            self._loop = None
            self._stop(loop)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """What is still open fails. Twice is harmless."""
        loop, self._loop = self._loop, None  # nobody else comes in
        if loop is not None:
            asyncio.run_coroutine_threadsafe(self._end(), loop).result()
            self._stop(loop)

    async def _end(self) -> None:
        """Close, and let every call that still waits, on whatever thread, have its error."""
        await self._server.close()
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        if calls:
            _, late = await asyncio.wait(calls, timeout=_END_S)
            for call in late:
                call.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def embed(self, texts: str | Sequence[str], **options: Any) -> Any:
        """float32 `[n, dim]`; options, answers and errors are AsyncLocalServer.embed's."""
        return self._run(self._server.embed(texts, **options))

    def score(
        self, query: str | Sequence[str], documents: Sequence[str], **options: Any
    ) -> NDArray[np.float32]:
        """float32 `[n]`; options, answers and errors are AsyncLocalServer.score's."""
        return self._run(self._server.score(query, documents, **options))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        loop = self._loop
        if loop is None:
            work.close()
            raise Unavailable("the server is not running: use it in a with block")
        try:
            return asyncio.run_coroutine_threadsafe(work, loop).result()
        except CancelledError:
            raise Unavailable("the server is shutting down") from None

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._thread is not None
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()
