"""The oracle of embeddings: stock transformers, float32, one text at a time, pooled by a plain
reading of the model's config; and bge-m3's three outputs by FlagEmbedding's formulas. Shares no
code with the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

# Largest difference of a value of a normalised vector.
TOLERANCE = 1e-5


class Oracle:
    """`pooling` is cls, mean, max, mean_sqrt_len, weighted_mean or last."""

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
        _, hidden = self.hidden(text)
        return _numpy(_normalised(pooled(hidden, self._pooling)))

    @torch.no_grad()
    def hidden(self, text: str) -> tuple[list[int], Tensor]:
        """Token ids, special ones included, and their last hidden states `[T, H]`."""
        inputs = self._tokenizer(
            text, truncation=True, max_length=self._max_length, padding=False, return_tensors="pt"
        )
        return inputs["input_ids"][0].tolist(), self._model(**inputs).last_hidden_state[0]


def pooled(hidden: Tensor, pooling: str) -> Tensor:
    """`[T, H]` -> `[H]`."""
    num_tokens = len(hidden)
    if pooling == "weighted_mean":
        weights = torch.arange(1, num_tokens + 1).unsqueeze(1)
        return (hidden * weights).sum(0) / weights.sum()
    vectors: dict[str, Tensor] = {
        "cls": hidden[0],
        "mean": hidden.mean(0),
        "max": hidden.max(0).values,
        "mean_sqrt_len": hidden.sum(0) / num_tokens**0.5,
        "last": hidden[-1],
    }
    return vectors[pooling]


class M3Oracle(Oracle):
    """bge-m3: one dense vector, a weight per token id, one vector per token."""

    def __init__(self, folder: Path, max_length: int) -> None:
        super().__init__(folder, "cls", max_length)
        self._sparse = _linear(folder / "sparse_linear.pt")
        self._colbert = _linear(folder / "colbert_linear.pt")
        tokens = self._tokenizer
        self._unused = {
            tokens.cls_token_id,
            tokens.eos_token_id,
            tokens.pad_token_id,
            tokens.unk_token_id,
        }

    def dense(self, text: str) -> NDArray[np.float32]:
        """`[H]`, L2-normalised."""
        return self.embed(text)

    @torch.no_grad()
    def sparse(self, text: str) -> dict[int, float]:
        """Token id -> its largest weight in the text; none that is zero, no special tokens."""
        ids, hidden = self.hidden(text)
        weights: dict[int, float] = {}
        for token_id, weight in zip(ids, torch.relu(self._sparse(hidden))[:, 0], strict=True):
            if token_id not in self._unused and weight > 0:
                weights[token_id] = max(weights.get(token_id, 0.0), float(weight))
        return weights

    @torch.no_grad()
    def colbert(self, text: str) -> NDArray[np.float32]:
        """`[T - 1, H]`, each L2-normalised: every token after <s>, the final </s> too."""
        _, hidden = self.hidden(text)
        return _numpy(_normalised(self._colbert(hidden[1:])))

    def dense_score(self, query: str, passage: str) -> float:
        return float(self.dense(query) @ self.dense(passage))

    def lexical_score(self, query: str, passage: str) -> float:
        return lexical_score(self.sparse(query), self.sparse(passage))

    def colbert_score(self, query: str, passage: str) -> float:
        return colbert_score(self.colbert(query), self.colbert(passage))

    def hybrid_score(
        self, query: str, passage: str, weights: Sequence[float] = (1.0, 1.0, 1.0)
    ) -> float:
        """`weights` are of the dense, the sparse and the colbert score."""
        scores = (
            self.dense_score(query, passage),
            self.lexical_score(query, passage),
            self.colbert_score(query, passage),
        )
        weighted = sum(weight * score for weight, score in zip(weights, scores, strict=True))
        return weighted / sum(weights)


def lexical_score(query: dict[int, float], passage: dict[int, float]) -> float:
    """The sum over token ids that both have of the product of their weights."""
    return sum(weight * passage[i] for i, weight in query.items() if i in passage)


def colbert_score(query: NDArray[np.float32], passage: NDArray[np.float32]) -> float:
    """The mean over query tokens of the best passage token's dot product."""
    return float((query @ passage.T).max(axis=1).mean())


class StOracle:
    """sentence-transformers itself: the folder's own modules, prompts and lengths."""

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(
            str(folder),
            device="cpu",
            model_kwargs={"dtype": torch.float32, "attn_implementation": "eager"},
        )

    def embed(
        self, text: str, prompt_name: str | None = None, prompt: str | None = None
    ) -> NDArray[np.float32]:
        """`[dim]`, as the folder's last module leaves it. Neither given: the folder's default."""
        vector: NDArray[np.float32] = self.model.encode(
            text, prompt_name=prompt_name, prompt=prompt, show_progress_bar=False
        )
        return vector


def _linear(path: Path) -> nn.Module:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    rows, columns = state["weight"].shape
    linear = nn.Linear(columns, rows)  # float32: stored half precision is widened
    linear.load_state_dict(state)
    return linear.eval()


def _normalised(vectors: Tensor) -> Tensor:
    lengths: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / lengths


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.numpy()
    return array
