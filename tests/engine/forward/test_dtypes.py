"""What linear layers compute in: bfloat16 and int8 against float32, and what `auto` takes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from bench.loaded import load_embedder, load_reranker
from bench.measure import words
from bench.random_models import SHAPES
from engine import loading
from engine.errors import ModelError
from engine.fitting import LoadOptions
from engine.forward import conversion, linear
from engine.model import EmbeddingModel
from engine.text.tokens import PairLimits, TextLimits, Tokens
from tests.engine.conftest import CPU, Embedders, Folders, change_json
from tests.engine.layers import forward_of
from tests.engine.oracle import Oracle

FAMILIES = ("tiny-bert", "tiny-xlm-roberta", "tiny-qwen3")
NEEDS = {
    dtype: pytest.mark.skipif(bool(reason), reason=f"this processor: {reason}")
    for dtype in ("bfloat16", "int8")
    for reason in [linear.can_prepack(dtype)]
}
COARSE = [
    pytest.param(dtype, marks=[NEEDS[dtype], pytest.mark.processor])
    for dtype in ("bfloat16", "int8")
]


def tokens_of(model: EmbeddingModel, num: int = 12) -> list[Tokens]:
    rng = random.Random(3)
    texts = [words(rng, rng.randrange(1, 50)) for _ in range(num)]
    return model.tokenize(texts, TextLimits(64))


def vectors(model: EmbeddingModel, batch: list[Tokens]) -> NDArray[np.float32]:
    rows = np.stack([outputs.dense for outputs in model.run(batch)])
    norms: NDArray[np.float32] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / norms


@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_coarser_type_is_near_and_a_text_does_not_depend_on_its_neighbours(
    load_tiny: Embedders, name: str, dtype: str
) -> None:
    exact, model = load_tiny(name), load_tiny(name, dtype=dtype)
    assert model.describe()["dtype"] == dtype
    batch = tokens_of(exact)
    together, wanted = vectors(model, batch), vectors(exact, batch)
    assert (together * wanted).sum(axis=1).min() > {"bfloat16": 0.995, "int8": 0.98}[dtype]
    alone = np.concatenate([vectors(model, [tokens]) for tokens in batch])
    # Kernels and their order of sums differ with the number of rows, and these models are 32 wide.
    assert (together * alone).sum(axis=1).min() > {"bfloat16": 0.995, "int8": 0.9995}[dtype]


def test_rows_of_int8_layers_have_their_own_scales() -> None:
    torch.manual_seed(0)
    ranges = torch.logspace(-1, 1, 64)  # of x's channels
    weight, bias, x = torch.randn(96, 64), torch.randn(96), torch.randn(9, 64) * ranges
    x[3] = 0
    x[4] *= 1e4
    x[5] = 7.5  # no range at all
    layer = linear.Int8(weight, bias, torch.randn(40, 64) * ranges)
    wanted = nn.functional.linear(x, weight, bias)
    got = layer(x)
    assert ((got - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < 0.05
    torch.testing.assert_close(got[3], bias)
    for row in range(9):
        torch.testing.assert_close(layer(x[row : row + 1])[0], got[row], rtol=1e-5, atol=1e-5)


def test_an_int8_layer_that_loses_too_much_stays_in_float32() -> None:
    torch.manual_seed(0)
    weight, sample = torch.randn(32, 64), torch.randn(40, 64)
    assert isinstance(linear.int8(weight, None, sample), linear.Int8)
    weight[:, 0], sample[:, 0] = 0, 3e3  # one channel takes the whole range, and gives nothing
    assert isinstance(linear.int8(weight, None, sample), linear.Prepacked)


@pytest.mark.parametrize("exact", [True, False])
def test_processors_without_vnni_get_rows_of_seven_bits(
    monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    monkeypatch.setattr(linear, "_has_exact_pairs", lambda: exact)
    largest: list[int] = []
    product = linear._int8_product

    def noted(rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        largest.append(int(rows.max()))
        return product(rows, *rest)

    monkeypatch.setattr(linear, "_int8_product", noted)
    weight, x = torch.randn(32, 64), torch.randn(9, 64)
    got = linear.Int8(weight, None)(x)
    assert largest == [255 if exact else 127]
    assert (got - x @ weight.T).norm() < 0.05 * got.norm()


@pytest.mark.parametrize("dtype", COARSE)
@pytest.mark.parametrize("name", ["tiny-bge-reranker", "tiny-bert-reranker"])
def test_the_order_of_thirty_documents_is_kept(
    load_tiny_reranker: Any, name: str, dtype: str
) -> None:
    exact, model = load_tiny_reranker(name), load_tiny_reranker(name, dtype=dtype)
    rng = random.Random(5)
    pairs = [("w1 w2 w3", words(rng, 5 + i)) for i in range(30)]
    batch = exact.tokenize_pairs(pairs, PairLimits(128))
    wanted, got = exact.run(batch), model.run(batch)
    above = np.sign(np.subtract.outer(wanted, wanted)) * np.sign(np.subtract.outer(got, got))
    tau = above[np.triu_indices(30, 1)].mean()
    assert tau > {"bfloat16": 0.95, "int8": 0.85}[dtype]


@NEEDS["bfloat16"]
@pytest.mark.processor
class TestAuto:
    def test_takes_bfloat16_only_where_it_is_faster(
        self, tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loading, "_LEAST_COSINE", {"auto": 0.9})
        for faster, dtype in ((True, "bfloat16"), (False, "float32")):
            monkeypatch.setattr(linear, "is_faster", lambda dtype, faster=faster: faster)
            model = load_embedder("m", tiny_folder("tiny-bert"), CPU, LoadOptions())
            assert (model.dtype, model.layout, model.linear) == (dtype, "unpadded", "prepacked")

    def test_takes_float32_where_a_vector_would_change(
        self,
        tiny_folder: Folders,
        monkeypatch: pytest.MonkeyPatch,
        project_log: pytest.LogCaptureFixture,
    ) -> None:
        exact = load_embedder("m", tiny_folder("tiny-bert"), CPU, LoadOptions(dtype="float32"))
        monkeypatch.setattr(linear, "is_faster", lambda dtype: True)
        monkeypatch.setattr(loading, "_LEAST_COSINE", {"auto": 1.1})
        model = load_embedder("m", tiny_folder("tiny-bert"), CPU, LoadOptions())
        assert model.dtype == "float32"
        assert "model m: not in bfloat16, a vector's cosine is 0.9" in project_log.text
        batch = tokens_of(exact)
        np.testing.assert_array_equal(vectors(model, batch), vectors(exact, batch))


def test_layers_are_let_go_of_one_by_one(
    tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[Any] = []
    convert = conversion.convert

    def noted(model: Any, *rest: Any) -> Any:
        whole.append(model)
        return convert(model, *rest)

    monkeypatch.setattr(conversion, "convert", noted)
    model = load_embedder("m", tiny_folder("tiny-qwen3"), CPU, LoadOptions())
    layers = whole[0].base_model.layers
    assert all(each.is_meta for layer in layers for each in layer.parameters())
    assert len(forward_of(model).layers) == len(layers)


@pytest.mark.parametrize("spoilt", ["zero", "nan"])
@pytest.mark.parametrize("name", FAMILIES)
def test_weights_that_are_zero_or_not_finite_are_refused(
    copy_tiny: Folders, name: str, spoilt: str
) -> None:
    folder: Path = copy_tiny(name)
    path = folder / "model.safetensors"
    value = 0.0 if spoilt == "zero" else float("nan")
    state = {key: torch.full_like(each, value) for key, each in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})
    for options in (LoadOptions(), LoadOptions(layout="padded"), LoadOptions(linear="plain")):
        with pytest.raises(ModelError, match=r"vectors are zero|not finite"):
            load_embedder("m", folder, CPU, options)


def test_a_reranker_with_scores_that_are_not_finite_is_refused(copy_tiny: Folders) -> None:
    path = copy_tiny("tiny-bge-reranker") / "model.safetensors"
    state = {
        key: torch.full_like(each, float("nan")) if "word_embeddings" in key else each
        for key, each in load_file(path).items()
    }
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        load_reranker("m", path.parent, CPU, LoadOptions())


def test_the_memory_of_a_load_is_that_of_the_type_that_the_model_can_have(
    copy_tiny: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "is_faster", lambda dtype: True)
    folder = copy_tiny("tiny-bert")
    narrow = loading.bytes_needed(folder, CPU, LoadOptions())
    wide = loading.bytes_needed(folder, CPU, LoadOptions(dtype="float32"))
    assert loading.bytes_needed(folder, CPU, LoadOptions(dtype="int8")) < narrow < wide
    change_json(folder / "config.json", model_type="no-forward-of-our-own")
    assert loading.bytes_needed(folder, CPU, LoadOptions()) == wide


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", "mixed", "lying pickle"])
@pytest.mark.parametrize("name", FAMILIES)
def test_float32_keeps_every_digit_of_what_is_stored(
    copy_tiny: Folders, name: str, storage: str
) -> None:
    folder: Path = copy_tiny(name)
    path = folder / "model.safetensors"
    state = load_file(path)
    if storage == "lying pickle":  # config.json says another type than the file has
        torch.save(state, folder / "pytorch_model.bin")
        path.unlink()
        change_json(folder / "config.json", dtype="float16", torch_dtype="float16")
    else:
        narrow = getattr(torch, "float16" if storage == "mixed" else storage)
        wide = torch.float32 if storage == "mixed" else narrow  # norms and biases
        state = {key: each.to(narrow if each.ndim > 1 else wide) for key, each in state.items()}
        save_file(state, path, metadata={"format": "pt"})
    oracle = Oracle(folder, SHAPES[name].pooling, SHAPES[name].max_length)
    model = load_embedder("m", folder, CPU, LoadOptions(dtype="float32"))
    texts = ["w1", "w2 w3 w4", "w5 w6 " * 15]
    got = vectors(model, model.tokenize(texts, TextLimits(64)))
    assert model.linear == "prepacked"
    for row, text in zip(got, texts, strict=True):
        np.testing.assert_allclose(row, oracle.embed(text), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "dtype", "reason"),
    [
        (LoadOptions(), "float32", "default"),
        (LoadOptions(dtype="float32"), "float32", "setting"),
        (LoadOptions(dtype="int8", layout="padded"), "float32", "int8 needs the CPU, unpadded "),
        (LoadOptions(dtype="int8", linear="plain"), "float32", "int8 needs the CPU, unpadded "),
    ],
)
def test_what_is_computed_in_has_a_reason(
    tiny_folder: Folders, options: LoadOptions, dtype: str, reason: str
) -> None:
    told = load_embedder("m", tiny_folder("tiny-bert"), CPU, options).describe()
    assert told["dtype"] == dtype
    assert str(told["dtype_reason"]).startswith(reason)


def test_a_family_without_a_forward_of_our_own_says_why_it_is_not_in_int8(
    tiny_folder: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "FAMILIES", ())
    options = LoadOptions(dtype="int8")
    told = load_embedder("m", tiny_folder("tiny-bert"), CPU, options).describe()
    assert (told["dtype"], told["layout"]) == ("float32", "unpadded")
    assert told["dtype_reason"] == "in int8 this model does not run, or its answer changes"
