"""The oracle: stock transformers, float32, one text at a time, pooled by a plain reading of the
model's config. Shares no code with the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

# Largest difference of a value of a normalised vector.
TOLERANCE = 1e-5


class Oracle:
    """`pooling` is cls, mean or last."""

    def __init__(self, folder: Path, pooling: str, max_length: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self._pooling = pooling
        self._max_length = max_length

    @torch.no_grad()
    def embed(self, text: str) -> NDArray[np.float32]:
        """`[dim]`, L2-normalised."""
        inputs = self._tokenizer(
            text, truncation=True, max_length=self._max_length, padding=False, return_tensors="pt"
        )
        hidden = self._model(**inputs).last_hidden_state[0]
        vector = {"cls": hidden[0], "mean": hidden.mean(0), "last": hidden[-1]}[self._pooling]
        normalised: NDArray[np.float32] = (vector / vector.norm()).numpy()
        return normalised
