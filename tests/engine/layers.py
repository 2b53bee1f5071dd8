"""What runs inside a loaded model's forward, whichever way it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from engine.forward.backbone import UnpaddedForward
from engine.forward.preemption import layers_of


def forward_of(model: Any) -> Any:
    """Our Encoder or Decoder, or transformers' model."""
    forward = model._backbone.forward
    if isinstance(forward, UnpaddedForward):
        forward = forward.row
    return forward.args[0] if isinstance(forward, functools.partial) else forward


@contextmanager
def before_layer(model: Any, place: int, act: Callable[[int], None]) -> Iterator[None]:
    """Inside, `act` is called with a batch's places for tokens before its layer at `place`."""
    forward = forward_of(model)
    if layers := layers_of(forward) if hasattr(forward, "config") else []:
        handle = layers[place].register_forward_pre_hook(
            lambda module, inputs: act(inputs[0].shape[:-1].numel())
        )
        try:
            yield
        finally:
            handle.remove()
        return
    layer = forward.layers[place]

    def first_product(x: Any) -> Any:
        act(len(x))
        return layer.query_key_value(x)

    forward.layers[place] = replace(layer, query_key_value=first_product)
    try:
        yield
    finally:
        forward.layers[place] = layer
