"""The real MiniLM weights against sentence-transformers: 200 varied texts, truncation included."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from api import vectors
from engine.loading import LoadOptions, load_model
from engine.model import EmbeddingModel
from engine.store import STAND_IN, ModelFolder, find_model
from tests.engine.conftest import CPU
from tests.texts import varied_texts

MIN_COSINE = 0.99999


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return find_model(None, tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def model(folder: ModelFolder) -> EmbeddingModel:
    return load_model(folder.name, folder.path, CPU, LoadOptions())


@pytest.fixture(scope="module")
def oracle(folder: ModelFolder) -> SentenceTransformer:
    return SentenceTransformer(str(folder.path), device="cpu")


def test_200_varied_texts_agree_with_sentence_transformers(
    model: EmbeddingModel, oracle: SentenceTransformer
) -> None:
    texts = varied_texts(200)
    ours = vectors.finish(model.run(model.tokenize(texts, model.max_length, True, 0)))
    theirs = np.stack(
        [oracle.encode(t, normalize_embeddings=True, show_progress_bar=False) for t in texts]
    )
    cosines = (ours * theirs).sum(1)
    assert cosines.min() >= MIN_COSINE, texts[int(cosines.argmin())][:80]


def test_raw_vectors_are_the_pooled_ones(
    model: EmbeddingModel, oracle: SentenceTransformer
) -> None:
    """Before L2, for dialects that answer raw vectors."""
    text = "Raw vectors keep their length."
    ours = model.run(model.tokenize([text], model.max_length, True, 0))[0]
    token_vectors = oracle.encode(text, output_value="token_embeddings")
    np.testing.assert_allclose(ours, token_vectors.mean(0).numpy(), atol=1e-5)


def test_stored_truncation_and_padding_to_128_are_switched_off(model: EmbeddingModel) -> None:
    short, long = model.tokenize(["hi", "word " * 1000], model.max_length, True, 0)
    assert (len(short.ids), len(long.ids)) == (3, 256)


def test_the_stand_in_is_described_as_what_it_is(model: EmbeddingModel) -> None:
    described = model.describe()
    assert (described["model"], described["pooling"], described["layout"]) == (
        STAND_IN,
        "mean",
        "packed",
    )


def test_a_head_of_a_huge_text_gives_the_tokens_of_the_whole(
    model: EmbeddingModel, oracle: SentenceTransformer
) -> None:
    rng = random.Random(3)
    for separator in (" ", "", "，", "\n\n", " \t "):
        parts = ("word", "天空", "naïve", "12.5", "🎉", "a" * 150, " ", "\x00", "can't")
        text = separator.join(rng.choice(parts) for _ in range(60_000))
        ours = model.tokenize([text], model.max_length, True, 0)[0].ids
        theirs = oracle.tokenizer(text, truncation=True, max_length=256)["input_ids"]
        assert ours == theirs, repr(separator)
