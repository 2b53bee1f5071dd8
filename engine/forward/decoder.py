"""The forward of Qwen3: all sequences of a batch in one row, common beginnings computed once.

Weights come from transformers' loaded model, which stays the oracle (engine/selfcheck.py). The
weights of the norms before linear layers are part of those layers' weights, and the scale of the
attention is part of the query norm's. Keeps no state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.forward.attention import attend
from engine.forward.linear import Linear, MakeLinear, Samples
from engine.forward.plan import Bounds, Heads
from engine.forward.preemption import pause

Rotary = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Layer:
    query_key_value: Linear  # [T, H] -> [T, (heads + 2 kv_heads) * head_dim]
    query_norm: Tensor  # [head_dim], the scale of the scores in it
    key_norm: Tensor  # [head_dim]
    attention_output: Linear
    gate_up: Linear  # [T, H] -> [T, 2 * intermediate]
    down: Linear


@dataclass(frozen=True, slots=True)
class Decoder:
    words: Tensor  # [vocabulary, H], in the stored dtype
    layers: Sequence[Layer]
    norm: Tensor  # [H]
    eps: float
    rotary: Rotary  # transformers' own: states and positions to cosines and sines
    heads: Heads
    dtype: torch.dtype  # of what goes into linear layers and the attention

    def __call__(
        self, ids: Tensor, positions: Tensor, type_ids: Tensor | None, bounds: Bounds
    ) -> Tensor:
        """Last hidden states float32 `[R, H]` of int64 ids and positions `[R]`."""
        x = self.words[ids].float()
        turn = _turn(*self.rotary(x, positions[None]))
        for layer in self.layers:
            pause()
            x.add_(self._attention(layer, x, bounds, turn))
            pause()
            x.add_(self._feed_forward(layer, x))
        return normalised(x, self.eps).mul_(self.norm)

    def _attention(self, layer: Layer, x: Tensor, bounds: Bounds, turn: Turn) -> Tensor:
        heads = self.heads
        row = layer.query_key_value(normalised(x, self.eps).to(self.dtype))
        row = row.view(len(x), heads.stride, -1)
        queries, keys = row[:, : heads.num_queries], row[:, heads.num_queries : -heads.num_keys]
        _rotate(queries, layer.query_norm, self.eps, turn)
        _rotate(keys, layer.key_norm, self.eps, turn)
        return layer.attention_output(attend(row, bounds, heads))

    def _feed_forward(self, layer: Layer, x: Tensor) -> Tensor:
        gate, up = layer.gate_up(normalised(x, self.eps).to(self.dtype)).chunk(2, dim=1)
        return layer.down(F.silu(gate).mul_(up))


Turn = tuple[Tensor, Tensor]  # cosines and sines [R, 1, head_dim / 2]


def _turn(cos: Tensor, sin: Tensor) -> Turn:
    """Both halves of a head turn by the same angles."""
    half = cos.shape[-1] // 2
    return cos[0, :, None, :half], sin[0, :, None, :half]


def normalised(x: Tensor, eps: float) -> Tensor:
    """float32 x over the root of its mean square, over the last dimension."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * (length.square_().div_(x.shape[-1]).add_(eps)).rsqrt_()


def _rotate(x: Tensor, weight: Tensor, eps: float, turn: Turn) -> None:
    """Norm and rotary embedding of `[R, heads, head_dim]`, in place."""
    cos, sin = turn
    first, second = normalised(x.float(), eps).mul_(weight).chunk(2, dim=-1)
    half = x.shape[-1] // 2
    x[..., :half] = torch.addcmul(first * cos, second, sin, value=-1)
    x[..., half:] = torch.addcmul(second * cos, first, sin)


def why_not(model: Any) -> str:
    """Empty when `model` is one whose forward this is, else the reason."""
    config = model.config
    if type(model).__name__ != "Qwen3Model":
        return f"{type(model).__name__} is another architecture"
    if "sliding_attention" in (config.layer_types or ()):
        return "it has layers with a sliding window"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    return ""


def read_model(model: Any, layers: Sequence[Layer], dtype: torch.dtype) -> Decoder:
    """What is not a layer."""
    config = model.config
    return Decoder(
        words=model.embed_tokens.weight.detach(),
        layers=layers,
        norm=model.norm.weight.detach().float(),
        eps=config.rms_norm_eps,
        rotary=model.rotary_emb,
        heads=Heads(config.num_attention_heads, config.num_key_value_heads, causal=True),
        dtype=dtype,
    )


def read_layer(layer: Any, linear: MakeLinear, dtype: torch.dtype, samples: Samples) -> Layer:
    """One of transformers' layers, its weights in float32."""
    own, mlp = layer.self_attn, layer.mlp
    parts = (own.q_proj, own.k_proj, own.v_proj)
    biases = None if own.q_proj.bias is None else torch.cat([each.bias for each in parts])

    def behind(norm: Any, weights: Tensor, bias: Tensor | None, first: Any) -> Linear:
        """A product of what the norm gives, the norm's weight a part of its own."""
        sample = samples.get(first)
        rows = None if sample is None else (sample / norm.weight).nan_to_num_(0.0, 0.0, 0.0)
        return linear(weights * norm.weight, bias, rows)

    return Layer(
        query_key_value=behind(
            layer.input_layernorm, torch.cat([each.weight for each in parts]), biases, own.q_proj
        ),
        query_norm=own.q_norm.weight.detach() * own.scaling,
        key_norm=own.k_norm.weight.detach().clone(),
        attention_output=linear(own.o_proj.weight, own.o_proj.bias, samples.get(own.o_proj)),
        gate_up=behind(
            layer.post_attention_layernorm,
            torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            None,
            mlp.gate_proj,
        ),
        down=linear(mlp.down_proj.weight, None, samples.get(mlp.down_proj)),
    )
