"""The real MiniLM weights against sentence-transformers: 200 varied texts, truncation included;
prompts, every pooling, and modules after it."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import LayerNorm, Normalize, Pooling
from torch import nn

from bench.loaded import load_embedder
from engine.fitting import LoadOptions
from engine.folder.store import STAND_IN, ModelFolder, default_models
from engine.model import EmbeddingModel
from engine.outputs import dense_rows
from engine.text.tokens import TextLimits
from serving import embedding as vectors
from tests.engine.conftest import CPU, Folders
from tests.engine.oracle import TOLERANCE
from tests.texts import varied_texts

MIN_COSINE = 0.99999
PROMPTS = {"query": "Represent this query: ", "document": "passage: "}
TEXTS = [
    "",
    "why is the sky blue?",
    "天空为什么是蓝色的？",
    "word " * 400,
    "A sentence of ten words or so.",
]
POOLINGS: list[tuple[str, ...]] = [
    ("cls", "mean", "max"),
    ("mean_sqrt_len_tokens", "lasttoken", "weightedmean"),
]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """sentence-transformers logs by its own handlers; pytest's capture is enough."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return default_models(tmp_path_factory.mktemp("empty"))[0]


@pytest.fixture(scope="module")
def model(folder: ModelFolder) -> EmbeddingModel:
    return load_embedder(folder.name, folder.path, CPU, LoadOptions())


@pytest.fixture(scope="module")
def oracle(folder: ModelFolder) -> SentenceTransformer:
    return SentenceTransformer(str(folder.path), device="cpu")


def test_200_varied_texts_agree_with_sentence_transformers(
    model: EmbeddingModel, oracle: SentenceTransformer
) -> None:
    texts = varied_texts(200)
    ours = vectors.finish(
        dense_rows(model.run(model.tokenize(texts, TextLimits(model.max_length))))
    )
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
    ours = model.run(model.tokenize([text], TextLimits(model.max_length)))[0].dense
    token_vectors = oracle.encode(text, output_value="token_embeddings")
    np.testing.assert_allclose(ours, token_vectors.mean(0).numpy(), atol=1e-5)


def test_stored_truncation_and_padding_to_128_are_switched_off(model: EmbeddingModel) -> None:
    short, long = model.tokenize(["hi", "word " * 1000], TextLimits(model.max_length))
    assert (len(short.ids), len(long.ids)) == (3, 256)


def test_the_stand_in_is_described_as_what_it_is(model: EmbeddingModel) -> None:
    described = model.describe()
    assert (described["model"], described["pooling"], described["layout"]) == (
        STAND_IN,
        "mean",
        "unpadded",
    )


def test_a_head_of_a_huge_text_gives_the_tokens_of_the_whole(
    model: EmbeddingModel, oracle: SentenceTransformer
) -> None:
    rng = random.Random(3)
    for separator in (" ", "", "，", "\n\n", " \t "):
        parts = ("word", "天空", "naïve", "12.5", "🎉", "a" * 150, " ", "\x00", "can't")
        text = separator.join(rng.choice(parts) for _ in range(60_000))
        ours = model.tokenize([text], TextLimits(model.max_length))[0].ids
        theirs = oracle.tokenizer(text, truncation=True, max_length=256)["input_ids"]
        assert ours == theirs, repr(separator)


def saved(oracle: SentenceTransformer, folder: Path, *modules: nn.Module) -> SentenceTransformer:
    """The same backbone with other modules behind it, written by sentence-transformers itself."""
    other = SentenceTransformer(modules=[oracle[0], *modules], device="cpu", prompts=PROMPTS)
    other.save(str(folder), create_model_card=False)
    return other.eval()


def served(model: EmbeddingModel, asked: list[tuple[str, str | None]]) -> list[NDArray[np.float32]]:
    """One batch of (text, prompt name)."""
    batch = []
    for text, name in asked:
        prompt = model.prompt(name, None, None)
        batch += model.tokenize([text], TextLimits(model.max_length), prompt=prompt)
    return [outputs.dense for outputs in model.run(batch)]


def check(model: EmbeddingModel, stock: SentenceTransformer, num_parts: int = 1) -> None:
    """Every text behind every prompt; each of a vector's equal parts is normalised on its own."""
    asked = list(itertools.product(TEXTS, [None, *PROMPTS]))
    for (text, name), got in zip(asked, served(model, asked), strict=True):
        wanted = stock.encode(text, prompt_name=name, show_progress_bar=False)
        assert got.shape == wanted.shape == (model.dim,)
        parts = zip(np.split(got, num_parts), np.split(wanted, num_parts), strict=True)
        for ours, theirs in parts:
            ours, theirs = vectors.finish(np.stack([ours, theirs]))
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("modes", POOLINGS)
def test_every_pooling_with_and_without_the_prompts_tokens(
    oracle: SentenceTransformer, tmp_path: Path, modes: tuple[str, ...], include_prompt: bool
) -> None:
    pooling = Pooling(384, modes, include_prompt=include_prompt)
    stock = saved(oracle, tmp_path / "mine", pooling)
    model = load_embedder("mine", tmp_path / "mine", CPU, LoadOptions())
    assert (len(model.recipe.pooling), model.recipe.include_prompt) == (3, include_prompt)
    check(model, stock, num_parts=3)


def test_prompts_of_the_stand_in_count_in_its_mean(
    model: EmbeddingModel, oracle: SentenceTransformer
) -> None:
    prompt = PROMPTS["query"]
    for text in TEXTS:
        tokens = model.tokenize([text], TextLimits(model.max_length), prompt=prompt)
        (ours,) = vectors.finish(dense_rows(model.run(tokens)))
        theirs = oracle.encode(text, prompt=prompt, show_progress_bar=False)
        np.testing.assert_allclose(ours, theirs / np.linalg.norm(theirs), atol=TOLERANCE)


def test_a_dense_module_added_to_the_stand_in(oracle: SentenceTransformer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    modules = (Pooling(384, "mean", include_prompt=False), Dense(384, 96), Normalize())
    stock = saved(oracle, tmp_path / "mine", *modules)
    model = load_embedder("mine", tmp_path / "mine", CPU, LoadOptions())
    assert model.dim == 96
    check(model, stock)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(
    "modules",
    [
        [Dense(32, 24, activation_function=None, bias=False)],
        [Dense(32, 32, use_residual=True), Normalize(), Dense(32, 24, use_residual=True)],
        [LayerNorm(32), Dense(32, 64, activation_function=nn.GELU())],
        [Normalize(), Dense(32, 40, activation_function=nn.Sigmoid()), LayerNorm(40)],
        [
            Dense(32, 16, activation_function=nn.ReLU()),
            Dense(16, 8, activation_function=nn.SiLU()),
            Normalize(),
        ],
    ],
    ids=["Identity", "residuals", "GELU", "Sigmoid", "ReLU"],
)
def test_modules_after_pooling_as_sentence_transformers_saves_them(
    tiny_folder: Folders, tmp_path: Path, modules: list[nn.Module], safe: bool
) -> None:
    tiny: Any = SentenceTransformer(str(tiny_folder("tiny-bert")), device="cpu")
    for parameter in nn.ModuleList(modules).parameters():
        nn.init.normal_(parameter, std=0.3)
    stock = SentenceTransformer(modules=[tiny[0], Pooling(32), *modules], prompts=PROMPTS)
    stock.save(str(tmp_path / "m"), create_model_card=False, safe_serialization=safe)
    model = load_embedder("m", tmp_path / "m", CPU, LoadOptions())
    check(model, stock.eval())
