"""Linear layers for the CPU, in the forms that a processor computes fast.

`F.linear` repacks a row-major weight on every call. Prepacked once into oneDNN's blocked layout,
the same product runs about 5 % faster at 1,024 tokens and 1.2 to 1.8 times faster at 16, where a
person's query lives (bench/results/kernels.json). The prepacked copy replaces the original, whose
memory-mapped pages the kernel can then drop. It needs PyTorch's own inference operators (the ones
that inductor emits) and that they agree with `F.linear`; everything else keeps its plain layers.
Must not know attention, batching or families beyond the module that BERT-like feed-forwards are
made of.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TYPICAL_TOKENS = 1024  # the blocked layout is chosen for this many; any number works
_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "int8": 5e-2}
_MIN_GAIN, _TURNS = 1.3, 15
_MAX_INT8_LOSS = 0.05
_SMOOTHING = 0.35
_MIN_SYMMETRIC = 4  # outputs for each input
_TINY = 1e-30  # a row of zeros has a scale too
_SMALL = 1e-5

Linear = Callable[[Tensor], Tensor]  # y = x W^T + b: [T, in] -> [T, out]
# Of W float32 [out, in], b [out] and rows [n, in] such as the layer will see.
MakeLinear = Callable[[Tensor, Tensor | None, Tensor | None], Linear]


Samples = Mapping[nn.Module, Tensor]  # what stock linear layers saw: rows [n, in]


class Prepacked(functools.partial[Tensor]):
    """By oneDNN over a prepacked copy of the weight; x and y are of the weight's dtype.

    A partial call of the operator: nothing of ours runs between it and the layer.
    """

    def __new__(
        cls, weight: Tensor, bias: Tensor | None, sample: Tensor | None = None
    ) -> Prepacked:
        return super().__new__(
            cls,
            torch.ops.mkldnn._linear_pointwise.default,
            W=torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TYPICAL_TOKENS),
            B=None if bias is None else bias.detach().clone(),
            attr="none",
            scalars=[],
            algorithm="",
        )


def bfloat16(weight: Tensor, bias: Tensor | None, sample: Tensor | None = None) -> Linear:
    """Prepacked, in bfloat16."""
    return Prepacked(weight.bfloat16(), None if bias is None else bias.bfloat16())


class PrepackedLinear(nn.Module):
    """An `nn.Linear` of transformers' model, prepacked; x `[..., in]` float32 -> `[..., out]`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._linear = Prepacked(linear.weight, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._linear(x)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class InPlaceGelu(nn.Module):
    """Exact GELU that overwrites its input, a linear layer's output that nothing else uses."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten.gelu_.default(x)
        return out


class Int8:
    """In int8 by oneDNN: a scale for each row of x and for each column of y, float32 outside.

    A row is scaled by its own range, so that what it gives does not depend on its neighbours. Rows
    are unsigned, because signed ones fall to a reference kernel on processors without AMX. A row's
    range begins at its smallest value, or, in layers so wide that another pass over y would cost
    much, has zero in its middle, which is coarser by a bit. Layers that widen make channels of x
    that are always large smaller, and their weights larger ("SmoothQuant", arXiv 2211.10438), by
    what `sample` shows.
    """

    __slots__ = ("_bias", "_columns", "_is_symmetric", "_levels", "_shrink", "_sums", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None, sample: Tensor | None = None) -> None:
        self._levels = 255 if _has_exact_pairs() else 127
        self._is_symmetric = len(weight) >= _MIN_SYMMETRIC * weight.shape[1]
        weight, self._shrink = weight.detach(), None
        if sample is not None and len(weight) > weight.shape[1]:
            grow = _smoothing(weight, sample)
            weight, self._shrink = weight * grow, grow.reciprocal()
        self._columns = weight.abs().amax(dim=1).clamp_(min=_TINY).div_(127)
        rows = (weight / self._columns[:, None]).round_()
        self._sums = rows.sum(dim=1).mul_(self._columns)
        self._bias = self._sums.new_zeros(()) if bias is None else bias.detach().clone()
        shape = [_TYPICAL_TOKENS, weight.shape[1]]
        self._weight = torch.ops.onednn.qlinear_prepack(rows.to(torch.int8), shape)

    def __call__(self, x: Tensor) -> Tensor:
        if self._shrink is not None:
            x = x * self._shrink
        low, high = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)
        if self._is_symmetric:
            zero = (self._levels + 1) // 2
            scales = torch.maximum(high, low.neg_()).clamp_(min=_TINY).div_(zero - 1)
            out = _int8_product(_rounded(x / scales, zero), zero, self._weight, self._columns)
            return out.mul_(scales).add_(self._bias)
        scales = high.sub_(low).clamp_(min=_TINY).div_(self._levels)
        out = _int8_product(_rounded((x - low).div_(scales), 0), 0, self._weight, self._columns)
        return out.mul_(scales).add_(torch.addcmul(self._bias, low, self._sums))


def _smoothing(weight: Tensor, sample: Tensor) -> Tensor:
    """By how much each channel's weights grow: part of the way to ranges that are alike."""
    rows = sample.abs().amax(dim=0).clamp_(min=_SMALL)
    columns = weight.abs().amax(dim=0).clamp_(min=_SMALL)
    grow = rows**_SMOOTHING / columns ** (1 - _SMOOTHING)
    return grow.div_(grow.mean())


def int8(weight: Tensor, bias: Tensor | None, sample: Tensor | None = None) -> Linear:
    """Int8, or in float32 where that loses too much of the product of the `sample` `[n, in]`."""
    layer = Int8(weight, bias, sample)
    if sample is not None:
        wanted = F.linear(sample, weight, bias)
        if (layer(sample) - wanted).norm() > _MAX_INT8_LOSS * wanted.norm():
            return Prepacked(weight, bias)
    return layer


def _int8_product(rows: Tensor, zero: int, weight: Tensor, columns: Tensor) -> Tensor:
    """float32 `[T, out]` of uint8 rows less their zero point, by a prepacked int8 weight."""
    zeros = torch.zeros(len(columns), dtype=torch.int32)
    product = torch.ops.onednn.qlinear_pointwise.default
    how: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
    out: Tensor = product(rows, 1.0, zero, weight, columns, zeros, None, *how)
    return out


def _rounded(x: Tensor, zero: int) -> Tensor:
    """x rounded to uint8 around a zero point: a quantized tensor's storage as plain bytes."""
    quantized = torch.quantize_per_tensor(x, 1.0, zero, torch.quint8)
    out: Any = torch.empty(0, dtype=torch.uint8)
    rows: Tensor = out.set_(quantized.untyped_storage(), 0, x.shape, x.stride())
    return rows


@functools.cache
def _has_exact_pairs() -> bool:
    """Whether this processor adds two products of 8 bits exactly. Without VNNI the sum of a pair is
    cut at 16 bits, and rows may have 7 bits only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # once: PyTorch plans to drop the operator
        _rounded(torch.zeros(1, 1), 0)
    weight = torch.full((16, 64), 127, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [16, 64])
    rows = torch.full((16, 64), 255, dtype=torch.uint8)
    return bool((_int8_product(rows, 0, packed, torch.ones(16)) == 64 * 255 * 127).all())


# What linear layers compute in: how a layer is made, and the dtype of the states around it.
FORMS: dict[str, tuple[MakeLinear, torch.dtype]] = {
    "float32": (Prepacked, torch.float32),
    "bfloat16": (bfloat16, torch.bfloat16),
    "int8": (int8, torch.float32),
}


@functools.cache
def is_faster(dtype: str) -> bool:
    """Whether this process multiplies in `dtype` clearly faster than in float32.

    Measured, because a virtual machine may not say what its processor has, or be slow at it. The
    best of many turns, since a server has other things to do while it starts; processors that are
    faster at all are twice as fast, the others several times slower.
    """
    if can_prepack(dtype) or can_prepack("float32"):
        return False
    weight, x = torch.rand(1024, 1024), torch.rand(256, 1024)
    with torch.inference_mode():
        forms = [FORMS["float32"], FORMS[dtype]]
        layers = [(make(weight, None, None), x.to(states)) for make, states in forms]
        turns = [[_seconds(*each) for each in layers] for _ in range(_TURNS)]
    exact, other = (min(taken) for taken in zip(*turns, strict=True))
    return bool(exact > _MIN_GAIN * other)


def _seconds(layer: Linear, rows: Tensor) -> float:
    start = time.perf_counter()
    layer(rows)
    return time.perf_counter() - start


def can_prepack(dtype: str = "float32") -> str:
    """Empty when layers in this form work in this build and process, else the reason why not."""
    if dtype not in FORMS:
        return f"there are no prepacked layers in {dtype}"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "PyTorch was built without oneDNN"
    make, states = FORMS[dtype]
    try:
        with torch.inference_mode():
            layer = nn.Linear(48, 32)
            x = torch.linspace(-2, 2, 5 * 48).reshape(5, 48)
            wanted = layer(x)
            got = make(layer.weight, layer.bias, None)(x.to(states)).float()
            error = (got - wanted).abs().max().item()
    except (RuntimeError, AttributeError, NotImplementedError) as reason:
        return f"oneDNN's prepacked product does not run: {reason}"
    limit = _TOLERANCE[dtype]
    return "" if error < limit else f"oneDNN's prepacked product is off by {error:.1e}"


Replaced = list[tuple[nn.Module, str, nn.Module]]  # parent, name, original


def prepack_linears(model: nn.Module) -> Replaced:
    """Replace every float32 `nn.Linear` below `model` by a PrepackedLinear, in place.

    Returns the originals for `restore`; forget them to free their memory. A weight shared with an
    embedding table stays for that table.
    """
    replaced: Replaced = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.weight.dtype == torch.float32:
                replaced.append((module, name, child))
                setattr(module, name, PrepackedLinear(child))
            elif name == "intermediate_act_fn" and _is_exact_gelu(child):
                replaced.append((module, name, child))
                setattr(module, name, InPlaceGelu())  # BERT, XLM-RoBERTa: act_fn(dense(x))
    return replaced


def restore(replaced: Replaced) -> None:
    """Undo `prepack_linears`."""
    for module, name, original in replaced:
        setattr(module, name, original)


def _is_exact_gelu(activation: Any) -> bool:
    """transformers' GELUActivation wraps `nn.functional.gelu`; its variants have other classes."""
    if type(activation) is nn.GELU:
        return activation.approximate == "none"
    return (
        type(activation).__name__ == "GELUActivation"
        and getattr(activation, "act", None) is nn.functional.gelu
    )
