"""Preemption between layers: every family allows it, and what runs there changes no bit."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.measure import words
from engine.forward.preemption import preemptible
from engine.model import EmbeddingModel, RerankingModel
from engine.text.tokens import PairLimits, TextLimits, Tokens
from tests.engine.conftest import Embedders, Rerankers

EMBEDDERS = ("tiny-bert", "tiny-xlm-roberta", "tiny-qwen3", "tiny-bge-m3")
NUM_LAYERS = 2  # of every tiny model
LAYOUTS = ("unpadded", "padded")


def embedder_batch(model: EmbeddingModel, seed: int = 1) -> list[Tokens]:
    rng = random.Random(seed)
    texts = ["common words first " + words(rng, rng.randrange(1, 60)) for _ in range(7)]
    return model.tokenize(texts, TextLimits(model.max_length))


def dense(model: EmbeddingModel, batch: list[Tokens]) -> NDArray[np.float32]:
    return np.stack([outputs.dense for outputs in model.run(batch)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", EMBEDDERS)
def test_a_batch_can_be_preempted_within_every_layer(
    load_tiny: Embedders, name: str, layout: str
) -> None:
    model = load_tiny(name, layout=layout)
    calls: list[int] = []
    batch = embedder_batch(model)[:1]  # one batch, when padded
    with preemptible(lambda: calls.append(1)):
        model.run(batch)
    num_calls = len(calls)
    assert num_calls >= 2 * NUM_LAYERS
    model.run(batch)
    assert len(calls) == num_calls


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", EMBEDDERS)
def test_what_preempts_a_batch_changes_no_bit(load_tiny: Embedders, name: str, layout: str) -> None:
    model, other = load_tiny(name, layout=layout), load_tiny("tiny-bert")
    batch, nested = embedder_batch(model), embedder_batch(model, 2)[:2]
    foreign = embedder_batch(other, 3)[:1]
    plain, plain_nested = dense(model, batch), dense(model, nested)
    plain_foreign = dense(other, foreign)

    def preempt() -> None:
        with preemptible(None):
            np.testing.assert_array_equal(dense(model, nested), plain_nested)
            np.testing.assert_array_equal(dense(other, foreign), plain_foreign)

    with preemptible(preempt):
        np.testing.assert_array_equal(dense(model, batch), plain)


@pytest.mark.parametrize("name", ["tiny-bge-reranker", "tiny-qwen3-reranker"])
def test_a_query_inside_a_rerank_batch_changes_no_bit_of_either(
    load_tiny: Embedders, load_tiny_reranker: Rerankers, name: str
) -> None:
    reranker: RerankingModel = load_tiny_reranker(name)
    embedder = load_tiny("tiny-bge-m3")
    rng = random.Random(4)
    pairs = [("w1 w2 w3", words(rng, 20 + i)) for i in range(5)]
    batch = reranker.tokenize_pairs(pairs, PairLimits(reranker.max_length))
    query = embedder_batch(embedder)[:1]
    plain, plain_query = reranker.run(batch), dense(embedder, query)
    num_calls = 0

    def preempt() -> None:
        nonlocal num_calls
        num_calls += 1
        with preemptible(None):
            np.testing.assert_array_equal(dense(embedder, query), plain_query)

    with preemptible(preempt):
        np.testing.assert_array_equal(reranker.run(batch), plain)
    assert num_calls


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seeds=st.lists(st.integers(0, 3), max_size=4), layout=st.sampled_from(LAYOUTS))
def test_any_order_of_nested_batches_changes_no_bit(
    load_tiny: Embedders, seeds: list[int], layout: str
) -> None:
    model = load_tiny("tiny-qwen3", layout=layout)
    batch = embedder_batch(model)
    plain = dense(model, batch)
    waiting = list(seeds)

    def preempt() -> None:
        if waiting:
            with preemptible(None):
                model.run(embedder_batch(model, waiting.pop())[:3])

    with preemptible(preempt):
        np.testing.assert_array_equal(dense(model, batch), plain)


def test_preemption_belongs_to_its_thread_and_its_block(load_tiny: Embedders) -> None:
    model = load_tiny("tiny-bert")
    batch = embedder_batch(model)[:1]
    outer: list[str] = []

    def note(name: str) -> Callable[[], None]:
        return lambda: outer.append(name)

    with preemptible(note("outer")):
        thread = threading.Thread(target=model.run, args=(batch,))
        thread.start()
        thread.join()
        assert not outer
        with preemptible(note("inner")):
            model.run(batch)
        assert set(outer) == {"inner"}
        outer.clear()
        model.run(batch)
    assert set(outer) == {"outer"}
