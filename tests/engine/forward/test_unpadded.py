"""Unpadded attention and prepacked linear layers alone, and the self-check that guards them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from bench.loaded import load_embedder
from engine import fitting
from engine.fitting import LoadOptions
from engine.forward import attention, conversion, decoder, encoder, linear, plan
from engine.forward.attention import unpadded_attention
from engine.forward.backbone import UnpaddedForward
from engine.forward.plan import Bounds
from engine.model import EmbeddingModel
from engine.text.tokens import TextLimits, Tokens
from tests.engine.conftest import CPU
from tests.engine.layers import forward_of

TOLERANCE = 1e-5


@pytest.mark.parametrize(
    ("lengths", "paths", "groups"),
    [
        ([3, 3, 5, 5], (), [[3, 3], [5, 5]]),
        ([8, 9, 10, 11], (), [[8, 9, 10], [11]]),  # a quarter of padding at most
        ([63, 64, 65, 65], (), [[63, 64], [65], [65]]),  # longer ones gain nothing from company
        ([300, 300, 301], (), [[300, 300], [301]]),
        ([20, 5, 5, 6], ((), ((0, 20),), ((0, 20),), ((0, 20),)), [[20], [5, 5], [6]]),
        ([20, 5, 5], ((), ((0, 20),), ((0, 9),)), [[20], [5], [5]]),
        ([200, 5, 5], ((), ((0, 200),), ((0, 200),)), [[200], [5], [5]]),  # too many keys to copy
    ],
)
def test_neighbours_that_gain_from_it_are_one_group(
    lengths: list[int], paths: Any, groups: list[list[int]]
) -> None:
    found = Bounds(tuple(lengths), paths).groups(256)
    assert [list(group.lengths) for group in found] == groups


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("lengths", [[1], [7, 7, 7], [1, 2, 300, 40, 40], [9, 10, 11, 60, 63]])
def test_each_sequence_attends_to_itself_alone(
    causal: bool, kv_heads: int, lengths: list[int]
) -> None:
    torch.manual_seed(1)
    query = torch.randn(1, 4, sum(lengths), 8)
    key, value = (torch.randn(1, kv_heads, sum(lengths), 8) for _ in range(2))
    out, _ = unpadded_attention(
        nn.Module(),
        query,
        key,
        value,
        None,
        sequence_bounds=Bounds(tuple(lengths)),
        is_causal=causal,
    )
    start = 0
    for length in lengths:
        q, k, v = (t[:, :, start : start + length] for t in (query, key, value))
        k, v = (t.repeat_interleave(4 // kv_heads, dim=1) for t in (k, v))
        wanted = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        torch.testing.assert_close(
            out[:, start : start + length], wanted.transpose(1, 2), atol=TOLERANCE, rtol=0
        )
        start += length


@pytest.mark.parametrize(
    "extra", [{"position_bias": torch.zeros(1)}, {"softcap": 30.0}, {"sliding_window": 9}]
)
def test_what_unpadded_attention_cannot_express_raises(extra: dict[str, Any]) -> None:
    t = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match=next(iter(extra))):
        unpadded_attention(nn.Module(), t, t, t, None, sequence_bounds=Bounds((2,)), **extra)


def test_prepacked_linear_layers_equal_plain_ones() -> None:
    torch.manual_seed(0)
    assert linear.can_prepack() == ""
    for bias in (True, False):
        layer = nn.Linear(96, 40, bias=bias)
        for shape in ((1, 1, 96), (1, 700, 96), (3, 5, 96)):
            x = torch.randn(shape)
            with torch.inference_mode():
                torch.testing.assert_close(
                    linear.PrepackedLinear(layer)(x), layer(x), atol=TOLERANCE, rtol=0
                )


def test_prepacked_layers_that_get_this_model_wrong_are_taken_back(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    product = linear.Prepacked.__call__
    monkeypatch.setattr(linear, "can_prepack", lambda dtype: "")
    monkeypatch.setattr(linear.Prepacked, "__call__", lambda self, x: 1.01 * product(self, x))
    model = load_embedder("m", tiny_folder("tiny-bert"), CPU, LoadOptions())
    assert (model.linear, model.layout) == ("plain", "unpadded")
    assert not any(isinstance(m, linear.PrepackedLinear) for m in forward_of(model).modules())


def test_only_float32_linear_layers_and_exact_gelu_are_replaced() -> None:
    model = nn.ModuleDict({"full": nn.Linear(8, 8), "narrow": nn.Linear(8, 8).half()})
    exact, approximate = nn.Module(), nn.Module()
    exact.intermediate_act_fn, approximate.intermediate_act_fn = nn.GELU(), nn.GELU("tanh")
    model.update({"exact": exact, "approximate": approximate})
    linear.prepack_linears(model)
    assert isinstance(model["full"], linear.PrepackedLinear)
    assert isinstance(model["narrow"], nn.Linear)
    assert isinstance(exact.intermediate_act_fn, linear.InPlaceGelu)
    assert isinstance(approximate.intermediate_act_fn, nn.GELU)


def test_a_build_without_the_prepacked_product_keeps_plain_layers(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "can_prepack", lambda dtype: "no such operator")
    model = load_embedder("m", tiny_folder("tiny-bert"), CPU, LoadOptions())
    assert model.linear == "plain"
    assert not any(isinstance(m, linear.PrepackedLinear) for m in forward_of(model).modules())


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-xlm-roberta", "tiny-qwen3"])
def test_every_linear_layer_of_every_family_is_prepacked(
    load_tiny: Callable[..., EmbeddingModel], name: str
) -> None:
    layers = forward_of(load_tiny(name)).layers
    products = [getattr(layer, field.name) for layer in layers for field in fields(layer)]
    products = [each for each in products if not isinstance(each, (encoder.Norm, torch.Tensor))]
    assert len(products) == 4 * len(layers) > 0
    assert all(isinstance(each, linear.Prepacked) for each in products)


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-xlm-roberta", "tiny-qwen3"])
def test_an_architecture_without_a_forward_of_our_own_is_prepacked_and_unpadded(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    own = load_embedder("own", tiny_folder(name), CPU, LoadOptions())
    monkeypatch.setattr(conversion, "FAMILIES", ())
    model = load_embedder("m", tiny_folder(name), CPU, LoadOptions())
    assert (model.layout, model.linear) == ("unpadded", "prepacked")
    modules = list(forward_of(model).modules())
    assert not [m for m in modules if type(m) is nn.Linear]
    assert [m for m in modules if isinstance(m, linear.PrepackedLinear)]
    tokens = model.tokenize(["w1", "w1 w2 w3", "w4 w5 w6 w7 " * 9], TextLimits(64))
    for got, right in zip(model.run(tokens), own.run(tokens), strict=True):
        np.testing.assert_allclose(got.dense, right.dense, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-qwen3"])
def test_a_forward_of_our_own_that_gets_a_model_wrong_is_not_used(
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    project_log: pytest.LogCaptureFixture,
    name: str,
) -> None:
    right = load_embedder("right", tiny_folder(name), CPU, LoadOptions())
    tokens = right.tokenize(["w1", "w1 w2 w3"], TextLimits(64))
    wanted = right.run(tokens)
    for family in (encoder, decoder):
        monkeypatch.setattr(family, "attend", lambda row, bounds, heads: leaky(row, bounds, heads))
    model = load_embedder("m", tiny_folder(name), CPU, LoadOptions())
    assert "our own forward in float32 does not fit this model: hidden states" in project_log.text
    assert model.layout == "unpadded"
    for got, own in zip(model.run(tokens), wanted, strict=True):
        np.testing.assert_allclose(got.dense, own.dense, atol=1e-5, rtol=0)


def leaky(row: torch.Tensor, bounds: Bounds, heads: plan.Heads) -> torch.Tensor:
    """Lets every sequence see all others."""
    everything = Bounds((sum(bounds.lengths),), num_unused=bounds.num_unused)
    return attention.attend(row, everything, heads)


def leaky_attention(*args: Any, sequence_bounds: Bounds, **kwargs: Any) -> Any:
    """Lets every sequence see all others."""
    everything = Bounds((sum(sequence_bounds.lengths),))
    return unpadded_attention(*args, sequence_bounds=everything, **kwargs)


def raising_attention(*args: Any, **kwargs: Any) -> Any:
    raise ValueError("cannot express this family")


@pytest.mark.parametrize("broken", [leaky_attention, raising_attention])
def test_a_family_that_the_unpadded_way_gets_wrong_is_served_padded_with_a_warning(
    tiny_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: Callable[..., Any],
) -> None:
    wanted = load_embedder("right", tiny_folder("tiny-bert"), CPU, LoadOptions())
    monkeypatch.setattr(conversion, "FAMILIES", ())
    monkeypatch.setattr(logging.getLogger("embedding"), "propagate", True)
    with monkeypatch.context() as patched:
        patched.setattr(attention, "unpadded_attention", broken)
        model = load_embedder("wrong", tiny_folder("tiny-bert"), CPU, LoadOptions())
    attention.register()
    assert model.layout == "padded"
    assert "the unpadded layout does not fit this model" in caplog.text
    tokens = model.tokenize(["w1", "w1 w2 w3"], TextLimits(64))
    for got, right in zip(model.run(tokens), wanted.run(tokens), strict=True):
        np.testing.assert_allclose(got.dense, right.dense, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "has_one"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, True),
        ({"layer_types": ["full_attention"], "sliding_window": 4096}, False),
        ({"sliding_window": 4096}, True),
        ({"sliding_window": None}, False),
        ({}, False),
    ],
)
def test_a_sliding_window_is_found_in_either_spelling(
    config: dict[str, Any], has_one: bool
) -> None:
    assert bool(fitting._sliding_window(SimpleNamespace(**config))) == has_one


def test_layers_with_a_sliding_window_are_served_padded(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder("tiny-qwen3"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 8,
        "use_sliding_window": True,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load_embedder("m", folder, CPU, LoadOptions()).layout == "padded"


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-xlm-roberta", "tiny-qwen3"])
def test_unused_rows_change_nothing(load_tiny: Callable[..., EmbeddingModel], name: str) -> None:
    model = load_tiny(name)
    own = model._backbone.forward
    assert isinstance(own, UnpaddedForward)
    num_rows: list[int] = []

    def noted(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        num_rows.append(len(ids))
        return own.row(ids, *rest)

    forward = replace(own, row=noted)
    batches = [[[7] * 5], [[7] * 5, list(range(9, 40))], [[8, 9] * 20 + [i] * i for i in (3, 4)]]
    with torch.inference_mode():
        for batch in batches:
            tokens = [Tokens(ids) for ids in batch]
            rounded = forward(tokens)
            exact = replace(forward, rounds_up=False)(tokens)
            assert num_rows[-2] % 4 == 0
            assert len(rounded.states) == len(exact.states) == num_rows[-1]
            torch.testing.assert_close(rounded.tokens(), exact.tokens(), atol=TOLERANCE, rtol=0)
    assert num_rows[0] > num_rows[1]
