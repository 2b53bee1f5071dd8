"""A loaded embedding model: texts to tokens, and a step of tokens to vectors.

Two threads call it: the tokenizer thread `tokenize`, the lane's thread `run`; they share nothing
that changes. Must not know jobs, HTTP or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from engine.forward import packed_hidden, padded_hidden
from engine.pooling import Pooling, pool
from engine.tokenizing import Tokenizer
from engine.tokens import Tokens


class EmbeddingModel:
    """`dim` is the vectors' width, `max_length` the longest input in tokens (special ones too)."""

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Tokenizer,
        pooling: Pooling,
        max_length: int,
        layout: Literal["packed", "padded"],
        linear: Literal["packed", "plain"],
    ) -> None:
        self.name = name
        self.dim = int(model.config.hidden_size)
        self.max_length = max_length
        self.pooling = pooling
        self.layout = layout
        self.linear = linear
        self._model = model
        self._tokenizer = tokenizer

    def tokenize(
        self, texts: Sequence[str], max_length: int, truncate: bool, first_index: int
    ) -> list[Tokens]:
        """Token ids of each text. Raises TextTooLong unless `truncate`."""
        return self._tokenizer.encode(texts, max_length, truncate, first_index)

    @torch.inference_mode()
    def run(self, step: Sequence[Tokens]) -> NDArray[np.float32]:
        """One vector a sequence, `[n, dim]` float32, pooled but not normalised."""
        order = sorted(range(len(step)), key=lambda i: len(step[i].ids))
        forward = packed_hidden if self.layout == "packed" else padded_hidden
        vectors = pool(forward(self._model, [step[i] for i in order]), self.pooling)
        rows: NDArray[np.float32] = np.empty((len(step), self.dim), dtype=np.float32)
        rows[order] = vectors.cpu().numpy()
        return rows

    def modules(self) -> Iterator[Any]:
        """The backbone's modules, as they are after loading."""
        return iter(self._model.modules())

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self._model.named_parameters())

    def describe(self) -> dict[str, str | int]:
        """What /health says of the model."""
        return {
            "model": self.name,
            "device": str(self._model.device),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "dim": self.dim,
            "max_length": self.max_length,
            "pooling": self.pooling,
            "layout": self.layout,
            "linear": self.linear,
        }
