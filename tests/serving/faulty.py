"""The server's app over real models that break at certain words, deep in their forward.

uvicorn --factory tests.serving.faulty:faulty_app
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from fastapi import FastAPI

from embedding import app
from engine import loading
from engine.model import EmbeddingModel
from engine.text.tokens import TextLimits, Tokens

# What a step with this word does before its last layer: raise, kill the thread, find no memory
# unless the text is alone in it.
RAISES, DIES, IS_LARGE = "w1", "w2", "w3"
IS_SLOW = "w4"  # sleeps before the first layer, so that much comes together
IS_SPOILT = "w5"  # the word's embedding is no number
WORDS = (RAISES, DIES, IS_LARGE, IS_SLOW, IS_SPOILT)
MESSAGE = "a fault that a test put there"
_SLOW_S = 0.02

_running: list[Sequence[Tokens]] = []  # the worker's step, and the one nested in it
_load_model, _run = loading.load_model, EmbeddingModel.run


def faulty_app() -> FastAPI:
    """Changes this process's engine for good."""
    mock.patch.object(loading, "load_model", _load).start()
    mock.patch.object(EmbeddingModel, "run", _noted).start()
    return app


def _noted(model: EmbeddingModel, step: Sequence[Tokens]) -> Any:
    _running.append(step)
    try:
        return _run(model, step)
    finally:
        _running.pop()


def _load(*given: Any) -> Any:
    model: Any = _load_model(*given)
    ids = {word: _id(model, word) for word in WORDS}
    model._backbone.words.data[ids[IS_SPOILT]] = float("nan")

    def in_step(word: str) -> bool:
        return any(ids[word] in tokens.ids for tokens in _running[-1])

    def before_first() -> None:
        if in_step(IS_SLOW):
            time.sleep(_SLOW_S)

    def before_last() -> None:
        if in_step(DIES):
            raise SystemExit(MESSAGE)
        if in_step(RAISES):
            raise RuntimeError(MESSAGE)
        if in_step(IS_LARGE) and len(_running[-1]) > 1:
            torch.empty(1 << 60)  # as the CPU's allocator says it

    layers = model._backbone.forward.row.layers
    for place, act in ((0, before_first), (-1, before_last)):
        layers[place] = replace(
            layers[place], query_key_value=_after(act, layers[place].query_key_value)
        )
    return model


def _after(act: Callable[[], None], product: Any) -> Any:
    def call(x: Any) -> Any:
        act()
        return product(x)

    return call


def _id(model: Any, word: str) -> int:
    ids: list[int] = model.tokenize([word], TextLimits(8))[0].ids
    return ids[1]
