"""Served vectors against the oracle, for every family; alone against in a batch."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.measure import words
from bench.random_tokenizers import END_OF_TEXT
from engine.model import EmbeddingModel
from engine.outputs import dense_rows
from engine.text.tokens import TextLimits
from serving import embedding as vectors
from tests.engine.oracle import TOLERANCE, Oracle

TEXTS = [
    "",
    "w1",
    "w1 w2 w3",
    "w1 w2 w4",  # same length as the one before: they run as one batch
    "Hello, world!",
    "你好，世界",
    "🎉 naïve café \x00\x07 \u200b",
    "<pad> [PAD] <s> </s> [SEP] <|endoftext|>",
    "   ",
    " ".join(f"w{i}" for i in range(60)),
    "x" * 3000,
    "w7 " * 1500,
]


def served(model: EmbeddingModel, texts: list[str]) -> NDArray[np.float32]:
    """All texts in one batch, normalised."""
    return vectors.finish(
        dense_rows(model.run(model.tokenize(texts, TextLimits(model.max_length))))
    )


def ended_once(text: str, model: EmbeddingModel) -> str:
    """Qwen3's tokenizer appends the mark even to a text that has it; served texts have it once."""
    return text.removesuffix(END_OF_TEXT) if model.recipe.family == "qwen3" else text


def test_a_mixed_batch_equals_stock_transformers_one_text_at_a_time(
    pair: tuple[EmbeddingModel, Oracle],
) -> None:
    model, oracle = pair
    wanted = np.stack([oracle.embed(ended_once(text, model)) for text in TEXTS])
    assert model.layout == "unpadded"
    np.testing.assert_allclose(served(model, TEXTS), wanted, atol=TOLERANCE)


def test_every_text_alone_equals_stock_transformers(
    pair: tuple[EmbeddingModel, Oracle],
) -> None:
    model, oracle = pair
    for text in TEXTS:
        wanted = oracle.embed(ended_once(text, model))
        np.testing.assert_allclose(served(model, [text])[0], wanted, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-xlm-roberta", "tiny-qwen3"])
@pytest.mark.parametrize("options", [{"layout": "padded"}, {"linear": "plain"}])
def test_padded_layout_and_plain_linear_layers_give_the_same_vectors(
    load_tiny: Callable[..., EmbeddingModel], name: str, options: dict[str, str]
) -> None:
    wanted = served(load_tiny(name), TEXTS)
    np.testing.assert_allclose(served(load_tiny(name, **options), TEXTS), wanted, atol=TOLERANCE)


def test_a_step_longer_than_the_position_table_is_served(
    pair: tuple[EmbeddingModel, Oracle],
) -> None:
    """Positions restart at each sequence: the row's own length has no limit."""
    model, oracle = pair
    texts = [words_of(count) for count in range(30, 60)]  # over 1,300 tokens, BERT has 512
    wanted = np.stack([oracle.embed(text) for text in texts])
    np.testing.assert_allclose(served(model, texts), wanted, atol=TOLERANCE)


def words_of(count: int) -> str:
    return words(random.Random(count), count)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lengths=st.lists(st.integers(0, 80), min_size=1, max_size=24), seed=st.integers(0, 999))
def test_alone_equals_in_a_step_for_any_mix_of_lengths(
    pair: tuple[EmbeddingModel, Oracle], lengths: list[int], seed: int
) -> None:
    model, _ = pair
    rng = random.Random(seed)
    texts = [words(rng, length) for length in lengths]
    together = served(model, texts)
    alone = np.stack([served(model, [text])[0] for text in texts])
    np.testing.assert_allclose(together, alone, atol=TOLERANCE)
