"""Pauses between a model's layers and their parts, at which the lane may run something urgent.

A hook before each part (attention, the two halves of the feed-forward, …) calls what the running
thread has set, or nothing. The forward itself knows nothing of it and keeps no state. Must not know
lanes or plans; imports no torch.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

Pause = Callable[[], None]


class _Running(threading.local):
    pause: Pause | None = None


_running = _Running()


@contextlib.contextmanager
def pausing(pause: Pause | None) -> Iterator[None]:
    """Inside, this thread's forwards call `pause` before each part of a layer; None: never."""
    outer = _running.pause
    _running.pause = pause
    try:
        yield
    finally:
        _running.pause = outer


def add_pauses(model: Any) -> int:
    """Hook the layers of a transformers model. How many there are; 0: it has none that we know."""
    layers = _layers(model)
    for layer in layers:
        for part in layer.children():
            part.register_forward_pre_hook(_pause_before)
    return len(layers)


def _layers(model: Any) -> list[Any]:
    """The one list of as many modules as the config has layers."""
    wanted = getattr(model.config, "num_hidden_layers", 0)
    for module in model.modules():
        if type(module).__name__ == "ModuleList" and len(module) == wanted > 1:
            return list(module)
    return []


def _pause_before(part: Any, inputs: Any) -> None:
    pause = _running.pause
    if pause is not None:
        pause()
