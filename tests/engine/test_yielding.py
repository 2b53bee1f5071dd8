"""Pauses between layers: every family has them, and what runs there changes no bit of the step."""

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
from engine.model import EmbeddingModel, RerankingModel
from engine.tokens import PairLimits, TextLimits, Tokens
from engine.yielding import pausing
from tests.engine.conftest import Embedders, Rerankers

EMBEDDERS = ("tiny-bert", "tiny-xlm-roberta", "tiny-qwen3", "tiny-bge-m3")
LAYOUTS = ("packed", "padded")


def embedder_step(model: EmbeddingModel, seed: int = 1) -> list[Tokens]:
    rng = random.Random(seed)
    texts = ["common words first " + words(rng, rng.randrange(1, 60)) for _ in range(7)]
    return model.tokenize(texts, TextLimits(model.max_length))


def dense(model: EmbeddingModel, step: list[Tokens]) -> NDArray[np.float32]:
    return np.stack([views.dense for views in model.run(step)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", EMBEDDERS)
def test_a_step_pauses_within_every_layer(load_tiny: Embedders, name: str, layout: str) -> None:
    model = load_tiny(name, layout=layout)
    num_layers = model._backbone.model.config.num_hidden_layers
    assert num_layers > 1
    pauses: list[int] = []
    step = embedder_step(model)[:1]  # one batch, when padded
    with pausing(lambda: pauses.append(1)):
        model.run(step)
    num_pauses = len(pauses)
    assert num_pauses >= 3 * num_layers
    model.run(step)
    assert len(pauses) == num_pauses


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", EMBEDDERS)
def test_what_runs_at_pauses_changes_no_bit(load_tiny: Embedders, name: str, layout: str) -> None:
    model, other = load_tiny(name, layout=layout), load_tiny("tiny-bert")
    step, nested = embedder_step(model), embedder_step(model, 2)[:2]
    foreign = embedder_step(other, 3)[:1]
    plain, plain_nested = dense(model, step), dense(model, nested)
    plain_foreign = dense(other, foreign)

    def pause() -> None:
        with pausing(None):
            np.testing.assert_array_equal(dense(model, nested), plain_nested)
            np.testing.assert_array_equal(dense(other, foreign), plain_foreign)

    with pausing(pause):
        np.testing.assert_array_equal(dense(model, step), plain)


@pytest.mark.parametrize("name", ["tiny-bge-reranker", "tiny-qwen3-reranker"])
def test_a_query_inside_a_rerank_step_changes_no_bit_of_either(
    load_tiny: Embedders, load_tiny_reranker: Rerankers, name: str
) -> None:
    reranker: RerankingModel = load_tiny_reranker(name)
    embedder = load_tiny("tiny-bge-m3")
    rng = random.Random(4)
    pairs = [("w1 w2 w3", words(rng, 20 + i)) for i in range(5)]
    step = reranker.tokenize_pairs(pairs, PairLimits(reranker.max_length))
    query = embedder_step(embedder)[:1]
    plain, plain_query = reranker.run(step), dense(embedder, query)
    num_pauses = 0

    def pause() -> None:
        nonlocal num_pauses
        num_pauses += 1
        with pausing(None):
            np.testing.assert_array_equal(dense(embedder, query), plain_query)

    with pausing(pause):
        np.testing.assert_array_equal(reranker.run(step), plain)
    assert num_pauses


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seeds=st.lists(st.integers(0, 3), max_size=4), layout=st.sampled_from(LAYOUTS))
def test_any_order_of_nested_steps_changes_no_bit(
    load_tiny: Embedders, seeds: list[int], layout: str
) -> None:
    model = load_tiny("tiny-qwen3", layout=layout)
    step = embedder_step(model)
    plain = dense(model, step)
    waiting = list(seeds)

    def pause() -> None:
        if waiting:
            with pausing(None):
                model.run(embedder_step(model, waiting.pop())[:3])

    with pausing(pause):
        np.testing.assert_array_equal(dense(model, step), plain)


def test_a_pause_belongs_to_its_thread_and_its_block(load_tiny: Embedders) -> None:
    model = load_tiny("tiny-bert")
    step = embedder_step(model)[:1]
    outer: list[str] = []

    def note(name: str) -> Callable[[], None]:
        return lambda: outer.append(name)

    with pausing(note("outer")):
        thread = threading.Thread(target=model.run, args=(step,))
        thread.start()
        thread.join()
        assert not outer
        with pausing(note("inner")):
            model.run(step)
        assert set(outer) == {"inner"}
        outer.clear()
        model.run(step)
    assert set(outer) == {"outer"}
