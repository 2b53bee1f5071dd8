"""Faults inside a real model's forward, on a real worker: whose work fails, and whose does not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from batcher.batches import BatchFailed, RowFailed
from batcher.jobs import Job
from batcher.worker import Worker, WorkerClosed
from engine import loading
from engine.errors import NotFinite
from engine.folder.store import ModelFolder
from engine.model import EmbeddingModel
from engine.text.tokens import PairLimits, TextLimits, Tokens
from serving.models.engine import run_batch
from serving.models.resident import Resident
from tests.engine.conftest import Embedders, Rerankers
from tests.engine.layers import before_layer
from tests.engine.oracle import TOLERANCE

FAMILIES = ("tiny-bert", "tiny-xlm-roberta", "tiny-qwen3")
LAYOUTS = ("unpadded", "padded")
URGENT = 40  # tokens; the bulk's batch has many more
PATIENCE_S = 30.0

SHORT = "w7"
LONG = [f"common words first w{i} " + "w9 " * 12 for i in range(20)]


class RealWorker:
    """A worker, one real model on it, and places in the model's forward where a test may act."""

    def __init__(self, model: Any) -> None:
        self.resident = Resident(model.name, ModelFolder(model.name, Path()), model=model)
        self.model = model
        self.num_freed = 0
        self.worker = Worker(
            run_batch,
            4096,
            max_urgent_tokens=URGENT,
            is_out_of_memory=loading.is_out_of_memory,
            free=self._count_free,
        )

    def _count_free(self) -> None:
        self.num_freed += 1

    def tokens(self, texts: list[str]) -> list[Tokens]:
        encoded: list[Tokens] = self.model.tokenize(texts, TextLimits(self.model.max_length))
        return encoded

    def submit(self, texts: list[str]) -> Submitted:
        tokens = self.tokens(texts)
        job = Job(self.resident, tokens, [len(each.ids) for each in tokens])
        submitted = Submitted(job)
        self.worker.submit(job)
        return submitted

    def plain(self, texts: list[str]) -> NDArray[np.float32]:
        """What one forward of these texts alone gives."""
        return np.stack([row.dense for row in self.model.run(self.tokens(texts))])

    @contextlib.contextmanager
    def before_layer(self, place: int, act: Callable[[int], None]) -> Iterator[None]:
        """Inside, `act` is called with a batch's places for tokens before its layer at `place`."""
        with before_layer(self.model, place, act):
            yield

    @contextlib.contextmanager
    def query_within(self) -> Iterator[list[Submitted]]:
        """Inside, a short text comes while the first long batch is in its first layer."""
        come: list[Submitted] = []

        def act(num_tokens: int) -> None:
            if num_tokens > URGENT and not come:
                come.append(self.submit([SHORT]))

        with self.before_layer(0, act):
            yield come


class Submitted:
    """A job whose end a test waits for."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ended = threading.Event()
        self.num_ends = 0
        job.on_end = self._end

    def _end(self) -> None:
        self.num_ends += 1
        self._ended.set()

    def error(self) -> Exception | None:
        """Waits."""
        assert self._ended.wait(PATIENCE_S)
        assert self.num_ends == 1
        return self._job.error

    def rows(self) -> NDArray[np.float32]:
        assert self.error() is None
        return np.stack([row.dense for row in self._job.rows])


@contextlib.contextmanager
def real_worker(model: Any) -> Iterator[RealWorker]:
    real = RealWorker(model)
    try:
        yield real
    finally:
        real.worker.stop(PATIENCE_S)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FAMILIES)
def real(request: pytest.FixtureRequest, load_tiny: Embedders, layout: str) -> Iterator[RealWorker]:
    """Each family and layout; the model is the test's own, to be spoilt."""
    with real_worker(load_tiny(request.param, layout=layout)) as worker:
        yield worker


def raises(num_tokens: int) -> None:
    raise RuntimeError("a fault that a test put there")


def test_an_exception_in_the_last_layer_fails_its_step_and_not_the_next(real: RealWorker) -> None:
    with real.before_layer(-1, raises):
        failed = real.submit(LONG)
        error = failed.error()
    assert isinstance(error, BatchFailed)
    assert "test" not in str(error)
    np.testing.assert_array_equal(real.submit(LONG).rows(), real.plain(LONG))


def test_an_exception_in_a_nested_step_is_not_the_outer_ones(real: RealWorker) -> None:
    def raises_when_short(num_tokens: int) -> None:
        if num_tokens <= URGENT:
            raises(num_tokens)

    with real.query_within() as queries, real.before_layer(-1, raises_when_short):
        rows = real.submit(LONG).rows()
    assert isinstance(queries[0].error(), BatchFailed)
    assert real.worker.num_preemptions == 1
    np.testing.assert_array_equal(rows, real.plain(LONG))


def test_an_exception_in_a_step_is_not_that_of_one_nested_in_it(real: RealWorker) -> None:
    def raises_when_long(num_tokens: int) -> None:
        if num_tokens > URGENT:
            raises(num_tokens)

    with real.query_within() as queries, real.before_layer(-1, raises_when_long):
        assert isinstance(real.submit(LONG).error(), BatchFailed)
        rows = queries[0].rows()
    assert real.worker.num_preemptions == 1
    np.testing.assert_array_equal(rows, real.plain([SHORT]))


def test_a_step_without_memory_runs_again_in_halves(real: RealWorker) -> None:
    def needs_memory(num_tokens: int) -> None:
        if num_tokens > 2 * URGENT:
            torch.empty(1 << 60)  # as the CPU's allocator says it

    with real.query_within() as queries, real.before_layer(-1, needs_memory):
        rows = real.submit(LONG).rows()
        query = queries[0].rows()
    assert real.worker.num_splits == real.num_freed > 0
    alone = np.concatenate([real.plain([text]) for text in LONG])
    np.testing.assert_allclose(rows, alone, atol=TOLERANCE)
    np.testing.assert_allclose(query, real.plain([SHORT]), atol=TOLERANCE)


def test_a_text_too_large_for_the_memory_fails_by_name_and_alone(real: RealWorker) -> None:
    longest = max(len(tokens.ids) for tokens in real.tokens(LONG[:3]))
    limit = -(-longest // 32) * 32  # a row has a few unused tokens

    def needs_memory(num_tokens: int) -> None:
        if num_tokens > limit:
            torch.empty(1 << 60)

    holds = threading.Event()

    def hold(num_tokens: int) -> None:
        assert holds.wait(PATIENCE_S)

    with real.before_layer(-1, needs_memory), real.before_layer(0, hold):
        first = real.submit([SHORT])  # so that the others wait for one batch
        large = real.submit([SHORT, "w8 " * 2 * longest])
        neighbour = real.submit(LONG[:3])
        holds.set()
        first.rows()
        error, rows = large.error(), neighbour.rows()
    assert isinstance(error, RowFailed)
    assert str(error) == "input 1: the model has not enough memory for it"
    alone = np.concatenate([real.plain([text]) for text in LONG[:3]])
    np.testing.assert_allclose(rows, alone, atol=TOLERANCE)


def spoil(model: EmbeddingModel, word: str) -> None:
    """Its embedding is no number from now on."""
    limits = TextLimits(model.max_length)
    (other,), (ids,) = model.tokenize(["w9"], limits), model.tokenize([word], limits)
    (own,) = set(ids.ids) - set(other.ids)
    model._backbone.words.data[own] = float("nan")


def test_a_row_that_is_no_number_is_its_own_texts_alone(real: RealWorker) -> None:
    texts = [*LONG[9:12], "common words first w3", "w9"]
    alone = [real.plain([text])[0] for text in texts]
    spoil(real.model, "w3")
    rows = run_batch(real.resident, real.tokens(texts), None)
    assert [isinstance(row, NotFinite) for row in rows] == ["w3" in text for text in texts]
    for row, expected in zip(rows, alone, strict=True):
        if not isinstance(row, NotFinite):
            np.testing.assert_allclose(row.dense, expected, atol=TOLERANCE)
    error = real.submit(texts).error()
    assert isinstance(error, RowFailed)
    assert str(error) == "input 3: the model's answer is not a finite number"


@pytest.mark.parametrize("name", ["tiny-bge-reranker", "tiny-qwen3-reranker"])
def test_a_score_that_is_no_number_is_its_own_pairs_alone(
    load_tiny_reranker: Rerankers, name: str, layout: str
) -> None:
    model = load_tiny_reranker(name, layout=layout)
    limits = PairLimits(model.max_length)
    batch = model.tokenize_pairs([("w9", "w8"), ("w9", "w3"), ("w9", "w9 w9 w9")], limits)
    alone = np.concatenate([model.run([pair]) for pair in batch])
    (own,) = set(batch[1].ids) - set(batch[0].ids)
    model._backbone.words.data[own] = float("nan")
    rows = run_batch(Resident(name, ModelFolder(name, Path()), model=model), batch, None)
    assert [isinstance(row, NotFinite) for row in rows] == [False, True, False]
    np.testing.assert_allclose([rows[0], rows[2]], alone[[0, 2]], atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("who", ["outer", "nested"])
def test_a_thread_killed_within_a_forward_fails_its_jobs_and_leaves_no_trace_in_the_model(
    real: RealWorker, who: str
) -> None:
    def dies(num_tokens: int) -> None:
        if (num_tokens <= URGENT) == (who == "nested"):
            raise SystemExit

    thread = real.worker._thread
    with real.query_within() as queries, real.before_layer(-1, dies):
        errors = [real.submit(LONG).error()]
        thread.join(PATIENCE_S)
    assert not real.worker.alive
    if who == "nested":
        errors.append(queries[0].error())
    else:
        np.testing.assert_array_equal(queries[0].rows(), real.plain([SHORT]))
    assert all(isinstance(error, WorkerClosed) for error in errors)
    with pytest.raises(WorkerClosed):
        real.submit([SHORT])
    real.worker.revive()
    assert real.resident.num_running == 0
    np.testing.assert_array_equal(real.submit(LONG).rows(), real.plain(LONG))
    np.testing.assert_array_equal(real.submit([SHORT]).rows(), real.plain([SHORT]))
