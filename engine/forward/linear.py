"""Linear layers for the CPU: weights prepacked once into oneDNN's blocked layout.

`F.linear` repacks a row-major weight on every call. Prepacked, the same product runs about 5 %
faster at 1,024 tokens and 1.2 to 1.8 times faster at 16, where a person's query lives
(bench/results/kernels.json).
The prepacked copy replaces the original, whose memory-mapped pages the kernel can then drop.
It needs float32, and PyTorch's own inference ops (the ones that inductor emits) that agree with
`F.linear`; everything else keeps its plain layers. Must not know attention, batching or families
beyond the module that BERT-like feed-forwards are made of.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_TYPICAL_TOKENS = 1024  # the blocked layout is chosen for this many; any number works
_TOLERANCE = 1e-4


class PrepackedLinear(nn.Module):
    """`y = x W^T + b` with W prepacked; x `[..., in]` float32 -> `[..., out]`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self._prepacked = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_TOKENS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        product = torch.ops.mkldnn._linear_pointwise
        out: Tensor = product(x, self._prepacked, self._bias, "none", [], "")
        return out

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class InPlaceGelu(nn.Module):
    """Exact GELU that overwrites its input, a linear layer's output that nothing else uses."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten.gelu_.default(x)
        return out


def can_prepack() -> str:
    """Empty when prepacked layers work in this build and process, else the reason why not."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "PyTorch was built without oneDNN"
    try:
        with torch.inference_mode():
            linear = nn.Linear(48, 32)
            x = torch.linspace(-2, 2, 5 * 48).reshape(1, 5, 48)
            error = (PrepackedLinear(linear)(x) - linear(x)).abs().max().item()
    except (RuntimeError, AttributeError, NotImplementedError) as reason:
        return f"oneDNN's prepacked product does not run: {reason}"
    return "" if error < _TOLERANCE else f"oneDNN's prepacked product is off by {error:.1e}"


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
