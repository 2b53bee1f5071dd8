"""bge-m3's three outputs, Dense, prompts and Qwen3-Embedding against the oracles, in mixed batches.

The other embedders are in test_reference.py.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.measure import words
from engine import outputs
from engine.model import EmbeddingModel
from engine.outputs import Outputs, Weights
from engine.text.tokens import TextLimits, Tokens
from serving import embedding as vectors
from tests.engine.conftest import Embedders, Folders
from tests.engine.oracle import TOLERANCE, M3Oracle, Oracle, StOracle

TEXTS = [
    "",
    "w1",
    "w1 w2 w3",
    "w3 w2 w1",
    "w1 w1 w1 w2 w2",  # a token's largest weight counts
    "Hello, World! naïve 你好 🎉",  # a token that the vocabulary lacks
    "<pad> w5 <s> w6 </s> w7 <unk>",
    words(random.Random(1), 40),
    words(random.Random(2), 41),
    words(random.Random(3), 300),
]
ASKED: list[tuple[str, ...]] = [
    ("dense",),
    ("dense", "sparse"),
    ("dense", "colbert"),
    ("dense", "sparse", "colbert"),
    ("dense", "tokens"),
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """sentence-transformers logs by its own handlers; pytest's capture is enough."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def m3(load_tiny: Embedders) -> EmbeddingModel:
    return load_tiny("tiny-bge-m3")


@pytest.fixture(scope="module")
def m3_oracle(tiny_folder: Folders) -> M3Oracle:
    return M3Oracle(tiny_folder("tiny-bge-m3"), 8192)


def tokenized(
    model: EmbeddingModel, texts: list[str], asked: list[tuple[str, ...]]
) -> list[Tokens]:
    """Each text asks for its own outputs."""
    return [
        model.tokenize([text], TextLimits(model.max_length), outputs=wanted)[0]
        for text, wanted in zip(texts, asked, strict=True)
    ]


def normalised(row: NDArray[np.float32]) -> NDArray[np.float32]:
    (finished,) = vectors.finish(row[None])
    return np.asarray(finished)


def assert_same_weights(got: outputs.Sparse, wanted: dict[int, float]) -> None:
    """A weight that one of the two rounds to zero may lack on the other."""
    weights = dict(zip(got.token_ids.tolist(), got.weights.tolist(), strict=True))
    assert list(weights) == sorted(weights)
    assert all(weight > 0 for weight in weights.values())
    for token_id in {*weights, *wanted}:
        difference = weights.get(token_id, 0.0) - wanted.get(token_id, 0.0)
        assert abs(difference) <= TOLERANCE, token_id


def assert_same_outputs(got: Outputs, wanted: Outputs) -> None:
    np.testing.assert_allclose(normalised(got.dense), normalised(wanted.dense), atol=TOLERANCE)
    assert (got.sparse is None, got.colbert is None) == (
        wanted.sparse is None,
        wanted.colbert is None,
    )
    if got.sparse is not None and wanted.sparse is not None:
        ids, weights = wanted.sparse.token_ids.tolist(), wanted.sparse.weights.tolist()
        assert_same_weights(got.sparse, dict(zip(ids, weights, strict=True)))
    if got.colbert is not None and wanted.colbert is not None:
        np.testing.assert_allclose(got.colbert, wanted.colbert, atol=TOLERANCE)


@pytest.mark.parametrize("shift", range(5))
def test_three_outputs_equal_the_authors_formulas_where_each_text_asks_for_others(
    m3: EmbeddingModel, m3_oracle: M3Oracle, shift: int
) -> None:
    asked = list(itertools.islice(itertools.cycle(ASKED), shift, shift + len(TEXTS)))
    for text, wanted, got in zip(TEXTS, asked, m3.run(tokenized(m3, TEXTS, asked)), strict=True):
        np.testing.assert_allclose(normalised(got.dense), m3_oracle.dense(text), atol=TOLERANCE)
        assert (got.sparse is not None) == ("sparse" in wanted)
        assert (got.colbert is not None) == ("colbert" in wanted)
        if got.sparse is not None:
            assert_same_weights(got.sparse, m3_oracle.sparse(text))
        if got.colbert is not None:
            np.testing.assert_allclose(got.colbert, m3_oracle.colbert(text), atol=TOLERANCE)
        assert (got.tokens is not None) == ("tokens" in wanted)
        if got.tokens is not None:
            np.testing.assert_allclose(got.tokens, m3_oracle.hidden(text)[1], atol=TOLERANCE)


def test_the_lexical_weights_are_not_all_zero(m3_oracle: M3Oracle) -> None:
    assert len(m3_oracle.sparse(TEXTS[-1])) > 20


def test_hybrid_scores_equal_the_authors(m3: EmbeddingModel, m3_oracle: M3Oracle) -> None:
    texts = [TEXTS[i] for i in (2, 4, 6)]
    all_outputs = m3.run(tokenized(m3, texts, [ASKED[3]] * len(texts)))
    for (query, left), (passage, right) in itertools.product(
        zip(texts, all_outputs, strict=True), repeat=2
    ):
        for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 2.0), (0.4, 0.2, 0.4)):
            wanted = m3_oracle.hybrid_score(query, passage, weights)
            got = outputs.hybrid_score(left, right, Weights(*weights))
            assert got == pytest.approx(wanted, abs=TOLERANCE)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    asked=st.lists(st.tuples(st.integers(0, 60), st.sampled_from(ASKED)), min_size=1, max_size=12),
    seed=st.integers(0, 999),
)
def test_outputs_of_a_text_alone_are_those_in_any_batch(
    m3: EmbeddingModel, asked: list[tuple[int, tuple[str, ...]]], seed: int
) -> None:
    rng = random.Random(seed)
    texts = [words(rng, length) for length, _ in asked]
    batch = tokenized(m3, texts, [wanted for _, wanted in asked])
    for together, tokens in zip(m3.run(batch), batch, strict=True):
        assert_same_outputs(together, m3.run([tokens])[0])


def test_the_padded_layout_gives_the_same_outputs(m3: EmbeddingModel, load_tiny: Embedders) -> None:
    padded = load_tiny("tiny-bge-m3", layout="padded")
    assert padded.layout == "padded"
    batch = tokenized(m3, TEXTS, [ASKED[3]] * len(TEXTS))
    for got, wanted in zip(padded.run(batch), m3.run(batch), strict=True):
        assert_same_outputs(got, wanted)


@pytest.mark.parametrize("name", ["tiny-dense", "tiny-prompts", "tiny-qwen3-embedding"])
def test_dense_modules_and_prompts_in_one_step_equal_sentence_transformers(
    load_tiny: Embedders, tiny_folder: Folders, name: str
) -> None:
    """tiny-prompts lower-cases, leaves its prompts out of the mean, and has a default prompt."""
    model, oracle = load_tiny(name), StOracle(tiny_folder(name))
    there = [None, *model.recipe.prompts.by_name]
    texts = ["W1 w2 w3", "Hello, World!", words(random.Random(5), 50), "w7 " * 100]
    asked = [(text, prompt_name) for text in texts for prompt_name in there]
    batch = []
    for text, prompt_name in asked:
        prompt = model.prompt(prompt_name, None, None)
        batch += model.tokenize([text], TextLimits(model.max_length), prompt=prompt)
    assert len({len(tokens.ids) for tokens in batch}) > 2
    for (text, prompt_name), got in zip(asked, model.run(batch), strict=True):
        wanted = oracle.embed(text, prompt_name)
        assert got.dense.shape == wanted.shape == (model.dim,)
        np.testing.assert_allclose(normalised(got.dense), wanted, atol=TOLERANCE)


def test_a_qwen3_embedding_with_an_instruction_equals_the_oracle_behind_the_whole_prompt(
    load_tiny: Embedders, tiny_folder: Folders
) -> None:
    model = load_tiny("tiny-qwen3-embedding")
    oracle = Oracle(tiny_folder("tiny-qwen3-embedding"), "last", 32768)
    instructions = ["Find the poem", "Given a question, find the answer"]
    prompts = [model.prompt(None, "query", instruction) for instruction in instructions]
    texts = [words(random.Random(i), 10 * i) for i in range(4)]
    asked = list(itertools.product(prompts, texts))
    batch = [model.tokenize([text], TextLimits(32768), prompt=prompt)[0] for prompt, text in asked]
    assert prompts[0] == "Instruct: Find the poem\nQuery:"
    for (prompt, text), got in zip(asked, model.run(batch), strict=True):
        wanted = oracle.embed(prompt + text)
        np.testing.assert_allclose(normalised(got.dense), wanted, atol=TOLERANCE)
