"""What every client's answer is held against: stock libraries on the served folders, one text and
one pair at a time. Must not know a route or a client."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.engine.oracle import Oracle, StOracle, pooled
from tests.engine.oracle_scores import CrossOracle

MIN_COSINE = 0.99999
SCORE_TOLERANCE = 1e-5  # of a score from 0 to 1

MINILM = "all-MiniLM-L6-v2"
RERANKER = "tiny-bge-reranker"
M3 = "tiny-bge-m3"
DIM = 384
MAX_LENGTH = 256  # MiniLM's, special tokens included
RERANKER_MAX_LENGTH = 512

TEXTS = [
    "why is the sky blue?",
    "The sky scatters short waves of sunlight more than long ones.",
    "天空为什么是蓝色的？",
    "",
    "Bread needs flour, water, salt and time.",
]
QUERY = "w1 w5"
DOCUMENTS = ["w1 w2 w5", "w7 w7", "why is the sky blue?", "w5", "w300 w1 w1 w9 w12"]


class ExpectedVectors:
    """MiniLM by sentence-transformers."""

    def __init__(self, folder: Path) -> None:
        self._oracle = StOracle(folder)
        self._embed = functools.cache(self._oracle.embed)  # every client sends the same texts
        self._folder = folder

    def of(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`[len(texts), DIM]`"""
        return np.stack([self._embed(text) for text in texts])

    def raw(self, text: str) -> NDArray[np.float32]:
        """`[DIM]`, before it is normalised."""
        _, hidden = Oracle(self._folder, "mean", MAX_LENGTH).hidden(text)
        vector: NDArray[np.float32] = pooled(hidden, "mean").numpy()
        return vector

    def num_tokens(self, texts: Sequence[str]) -> int:
        """Special ones included."""
        return sum(len(self._oracle.model.tokenizer(text)["input_ids"]) for text in texts)

    def check(self, got: Any, texts: Sequence[str], dim: int = DIM) -> None:
        """Fails unless each vector is its text's: unit length, direction."""
        vectors = np.asarray(got, dtype=np.float32)
        assert vectors.shape == (len(texts), dim)
        wanted = self.of(texts)[:, :dim]
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        cosines = (vectors * wanted).sum(axis=1)
        assert cosines.min() >= MIN_COSINE, texts[int(cosines.argmin())]


class ExpectedScores:
    """The tiny reranker by transformers."""

    def __init__(self, folder: Path) -> None:
        self._oracle = CrossOracle(folder, RERANKER_MAX_LENGTH)

    def of(self, query: str, documents: Sequence[str]) -> list[float]:
        return [self._oracle.score(query, document) for document in documents]

    def num_tokens(self, query: str, documents: Sequence[str]) -> int:
        return sum(len(self._oracle.ids(query, document)) for document in documents)

    def check(
        self,
        got: Sequence[tuple[int, float]],
        query: str = QUERY,
        documents: Sequence[str] = DOCUMENTS,
        top_n: int | None = None,
    ) -> None:
        """Fails unless `(index, score)` come best first and each score is its document's."""
        wanted = self.of(query, documents)
        order = np.argsort(-np.array(wanted), kind="stable").tolist()[:top_n]
        assert [index for index, _ in got] == order
        scores = [score for _, score in got]
        np.testing.assert_allclose(scores, [wanted[i] for i in order], atol=SCORE_TOLERANCE)
        assert len(set(scores)) == len(scores)
