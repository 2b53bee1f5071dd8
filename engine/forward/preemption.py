"""Preemption points: between the parts of a model's layers a worker may run something urgent.

Our own forwards call `pause` before each part (attention, feed-forward); in transformers' models a
hook does. It calls what the running thread has set, if anything, so a forward keeps no state. Must
not know workers or the scheduler; imports no torch.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

Preempt = Callable[[], None]


class _Running(threading.local):
    preempt: Preempt | None = None


_running = _Running()


@contextlib.contextmanager
def preemptible(preempt: Preempt | None) -> Iterator[None]:
    """Inside, this thread's forwards call `preempt` before each part of a layer; None: never."""
    outer = _running.preempt
    _running.preempt = preempt
    try:
        yield
    finally:
        _running.preempt = outer


def add_preemption_points(model: Any) -> int:
    """Hook the layers of a transformers model and count them; 0 where none are found."""
    layers = layers_of(model)
    for layer in layers:
        for part in layer.children():
            part.register_forward_pre_hook(_maybe_preempt)
    return len(layers)


def layers_of(model: Any) -> list[Any]:
    """The one list of as many modules as the config has layers."""
    wanted = getattr(model.config, "num_hidden_layers", 0)
    for module in model.modules():
        if type(module).__name__ == "ModuleList" and len(module) == wanted > 1:
            return list(module)
    return []


def pause() -> None:
    """Runs before every part of every layer, so it only reads one attribute when nothing is set."""
    if (preempt := _running.preempt) is not None:
        preempt()


def _maybe_preempt(part: Any, inputs: Any) -> None:
    pause()
