"""The forward of BERT and XLM-RoBERTa: all sequences of a batch in one row of real tokens.

Weights come from transformers' loaded model, which stays the oracle (engine/selfcheck.py). The
arithmetic is its own, operation for operation, but for the scale of the attention, which is part of
the query weights, and for Q, K and V, which are one product. Keeps no state.
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

# What a config calls them; transformers' ACT2FN has the same functions.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_.default,
    "relu": torch.ops.aten.relu_.default,
    "silu": torch.ops.aten.silu_.default,
}


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm over the last dimension."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, module: Any, dtype: torch.dtype) -> Norm:
        parameters = (module.weight, module.bias)
        weight, bias = (each.detach().to(dtype, copy=True) for each in parameters)
        return cls(weight, bias, module.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Layer:
    query_key_value: Linear  # [T, H] -> [T, 3H], queries scaled
    attention_output: Linear
    attention_norm: Norm
    feed_forward_in: Linear
    feed_forward_out: Linear
    output_norm: Norm


@dataclass(frozen=True, slots=True)
class Encoder:
    words: Tensor  # [vocabulary, H], in the stored dtype
    positions: Tensor  # [positions, H], the vector of type 0 added
    types: Tensor  # [types, H], less the vector of type 0
    norm: Norm
    layers: Sequence[Layer]
    heads: Heads
    activation: Callable[[Tensor], Tensor]  # in place
    dtype: torch.dtype  # of the states between layers

    def __call__(
        self, ids: Tensor, positions: Tensor, type_ids: Tensor | None, bounds: Bounds
    ) -> Tensor:
        """Last hidden states `[T, H]` of int64 ids and positions `[T]`."""
        x = self._embed(ids, positions, type_ids)
        for layer in self.layers:
            x = self.run_layer(layer, x, bounds)
        return x

    def run_layer(self, layer: Layer, x: Tensor, bounds: Bounds) -> Tensor:
        """States `[T, H]` before and after a layer."""
        pause()
        x = layer.attention_norm(self._attention(layer, x, bounds).add_(x))
        pause()
        hidden = self.activation(layer.feed_forward_in(x))
        return layer.output_norm(layer.feed_forward_out(hidden).add_(x))

    def _embed(self, ids: Tensor, positions: Tensor, type_ids: Tensor | None) -> Tensor:
        x = self.words[ids].float().add_(self.positions[positions])
        if type_ids is not None:
            x.add_(self.types[type_ids])
        return self.norm(x).to(self.dtype)

    def _attention(self, layer: Layer, x: Tensor, bounds: Bounds) -> Tensor:
        row = layer.query_key_value(x).view(len(x), 3 * self.heads.num_queries, -1)
        return layer.attention_output(attend(row, bounds, self.heads))


def why_not(model: Any) -> str:
    """Empty when `model` is one whose forward this is, else the reason."""
    config = model.config
    if type(model).__name__ not in ("BertModel", "XLMRobertaModel", "RobertaModel"):
        return f"{type(model).__name__} is another architecture"
    if getattr(config, "position_embedding_type", "absolute") not in ("absolute", None):
        return f"its positions are {config.position_embedding_type}"
    if config.hidden_act not in _ACTIVATIONS:
        return f"its activation is {config.hidden_act}"
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        return "it is a decoder"
    return ""


def read_model(model: Any, layers: Sequence[Layer], dtype: torch.dtype) -> Encoder:
    """What is not a layer, from a model whose embeddings are on the CPU."""
    embeddings = model.embeddings
    positions = embeddings.position_embeddings.weight.detach().float()
    types = embeddings.token_type_embeddings.weight.detach().float()
    num_heads = model.config.num_attention_heads
    return Encoder(
        words=embeddings.word_embeddings.weight.detach(),
        positions=positions + types[0],
        types=types - types[0],
        norm=Norm.of(embeddings.LayerNorm, torch.float32),
        layers=layers,
        heads=Heads(num_heads, num_heads),
        activation=_ACTIVATIONS[model.config.hidden_act],
        dtype=dtype,
    )


def read_layer(layer: Any, linear: MakeLinear, dtype: torch.dtype, samples: Samples) -> Layer:
    """One of transformers' layers, its weights in float32."""
    own, after = layer.attention.self, layer.attention.output
    scale = own.attention_head_size**-0.5
    parts = (own.query, own.key, own.value)
    weights, biases = [each.weight for each in parts], [each.bias for each in parts]

    def of(module: Any) -> Linear:
        return linear(module.weight, module.bias, samples.get(module))

    return Layer(
        query_key_value=linear(
            torch.cat([weights[0] * scale, *weights[1:]]),
            torch.cat([biases[0] * scale, *biases[1:]]),
            samples.get(own.query),
        ),
        attention_output=of(after.dense),
        attention_norm=Norm.of(after.LayerNorm, dtype),
        feed_forward_in=of(layer.intermediate.dense),
        feed_forward_out=of(layer.output.dense),
        output_norm=Norm.of(layer.output.LayerNorm, dtype),
    )
