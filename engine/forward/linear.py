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

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_TYPICAL_TOKENS = 1024  # the blocked layout is chosen for this many; any number works
_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}

Linear = Callable[[Tensor], Tensor]  # y = x W^T + b: [T, in] -> [T, out]
MakeLinear = Callable[[Tensor, Tensor | None], Linear]  # of W float32 [out, in] and b [out]


class Plain:
    """By `F.linear`, the weight as it is."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Prepacked:
    """By oneDNN over a prepacked copy of the weight; x and y are of the weight's dtype."""

    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TYPICAL_TOKENS)
        self._bias = None if bias is None else bias.detach().clone()

    def __call__(self, x: Tensor) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise.default
        out: Tensor = product(x, self._weight, self._bias, "none", [], "")
        return out


def bfloat16(weight: Tensor, bias: Tensor | None) -> Linear:
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


# What linear layers compute in: how a layer is made, and the dtype of the states around it.
FORMS: dict[str, tuple[MakeLinear, torch.dtype]] = {
    "float32": (Prepacked, torch.float32),
    "bfloat16": (bfloat16, torch.bfloat16),
}


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
            got = make(layer.weight, layer.bias)(x.to(states)).float()
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
