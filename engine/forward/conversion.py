"""From transformers' model to a forward of our own, a layer at a time.

One stock forward over a few sequences runs in float32, and each layer becomes a record as soon as
it has run: its weights are read from the mapped file then, and let go of at once, so no more than
one layer is ever held twice. What that forward gives is what the new one must give. Must not know
folders, tokenizers or what the model is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine import memory
from engine.forward import decoder, encoder, linear
from engine.forward.backbone import Hidden, padded_inputs
from engine.forward.decoder import Decoder
from engine.forward.encoder import Encoder
from engine.forward.preemption import layers_of
from engine.selfcheck import Stock
from engine.text.tokens import Tokens

FAMILIES = ("bert", "roberta", "xlm-roberta", "qwen3")


def is_decoder(model: Any) -> bool:
    return hasattr(model, "embed_tokens")


def why_not(model: Any) -> str:
    """Empty when one of our own forwards is this model's, else the reason."""
    family = decoder if is_decoder(model) else encoder
    return family.why_not(model) if layers_of(model) else "its layers are not known"


@torch.inference_mode()
def convert(whole: Any, sequences: Sequence[Tokens], dtype: str) -> tuple[Stock, Encoder | Decoder]:
    """What stock gives for the sequences, and our forward, whose linear layers compute in `dtype`.

    `whole` is transformers' model, with its head if it has one, its weights as stored. It cannot
    run again: its layers have lost their weights.
    """
    model = whole.base_model
    family: Any = decoder if is_decoder(model) else encoder
    make, states_dtype = linear.FORMS[dtype]
    inputs = padded_inputs(model, sequences)
    samples: dict[nn.Module, Tensor] = {}
    layers: list[Any] = []
    states: list[Tensor] = []

    def read(layer: Any) -> None:
        layers.append(family.read_layer(layer, make, states_dtype, samples))
        samples.clear()

    with ExitStack() as stack:
        stack.enter_context(_float32_around(whole))
        if dtype == "int8":
            stack.enter_context(_sampled(model, inputs["attention_mask"].bool(), samples))
        stack.enter_context(_each_layer_once(layers_of(model), read))
        handle = model.register_forward_hook(
            lambda module, inputs, output: states.append(output.last_hidden_state)
        )
        stack.callback(handle.remove)
        output = whole(**inputs)
    lengths = [len(tokens.ids) for tokens in sequences]
    rows = [row[:length] for row, length in zip(states[0], lengths, strict=True)]
    hidden = Hidden(torch.cat(rows), torch.tensor(lengths))
    stock = Stock(hidden, None if whole is model else output.logits)
    return stock, family.read_model(model, layers, states_dtype)


@contextmanager
def _sampled(model: Any, mask: Tensor, samples: dict[nn.Module, Tensor]) -> Iterator[None]:
    """Inside, `samples` gets what the layers' linear layers see of real tokens."""

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        samples[module] = inputs[0].reshape(*mask.shape, -1)[mask]

    modules = (module for layer in layers_of(model) for module in layer.modules())
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(note) for module in linears]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def _float32_around(whole: Any) -> Iterator[None]:
    """Everything but the layers and the table of words computes in float32."""
    table = whole.get_input_embeddings()
    layers = {id(module) for layer in layers_of(whole.base_model) for module in layer.modules()}
    for module in whole.modules():
        if id(module) not in layers and module is not table and not list(module.children()):
            module.float()
    handle = table.register_forward_hook(lambda module, inputs, output: output.float())
    yield
    handle.remove()


@contextmanager
def _each_layer_once(layers: Sequence[Any], read: Callable[[Any], None]) -> Iterator[None]:
    stored: list[Tensor] = []

    def before(layer: Any, inputs: Any) -> None:
        stored.extend(layer.parameters())
        layer.float()

    def after(layer: Any, inputs: Any, output: Any) -> None:
        read(layer)
        layer.to("meta")
        spans = [(each.data_ptr(), each.nbytes) for each in stored]
        memory.drop_pages(spans)
        memory.trim()
        stored.clear()

    handles = [layer.register_forward_pre_hook(before) for layer in layers]
    handles += [layer.register_forward_hook(after) for layer in layers]
    yield
    for handle in handles:
        handle.remove()
