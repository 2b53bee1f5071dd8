"""What one forward gives for one text: a dense vector, lexical weights, token vectors. numpy only.

Also how the outputs of two texts compare. Formulas: "M3-Embedding" (arXiv 2402.03216), section 3.2,
as the authors' FlagEmbedding computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

_BLOCK = 512  # rows of a query compared at a time, so that long texts need no matrix of all pairs


@dataclass(frozen=True, slots=True)
class Sparse:
    """Lexical weights: `token_ids` int64 `[k]` rising, `weights` float32 `[k]` above 0."""

    token_ids: NDArray[np.int64]
    weights: FloatArray


@dataclass(frozen=True, slots=True)
class Outputs:
    """`dense` `[dim]` as pooled, not normalised. `colbert` `[tokens - 1, H]`, each row of norm 1.
    `tokens` `[tokens, H]`, the last hidden states, which every model has."""

    dense: FloatArray
    sparse: Sparse | None = None
    colbert: FloatArray | None = None
    tokens: FloatArray | None = None


def dense_rows(outputs: Sequence[Outputs]) -> FloatArray:
    """`[n, dim]`: the dense vectors of all texts; a single one is not copied."""
    if len(outputs) == 1:
        return outputs[0].dense[None]
    return np.stack([each.dense for each in outputs])


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each output counts in a hybrid score: finite, none negative, the sum above 0."""

    dense: float = 1.0
    sparse: float = 0.0
    colbert: float = 0.0


def lexical_weights(token_ids: NDArray[np.int64], weights: FloatArray) -> Sparse:
    """The largest weight of each token id; those at 0 are dropped."""
    positive = weights > 0
    ids, inverse = np.unique(token_ids[positive], return_inverse=True)
    largest = np.zeros(len(ids), dtype=np.float32)
    np.maximum.at(largest, inverse, weights[positive])
    return Sparse(ids, largest)


def dense_score(left: FloatArray, right: FloatArray) -> float:
    """Cosine; 0 for a zero vector."""
    scale = float(np.linalg.norm(left)) * float(np.linalg.norm(right))
    return float(left @ right) / scale if scale else 0.0


def sparse_score(left: Sparse, right: Sparse) -> float:
    """Sum over common tokens of the products of their weights."""
    _, i, j = np.intersect1d(left.token_ids, right.token_ids, True, return_indices=True)
    return float(left.weights[i] @ right.weights[j])


def colbert_score(query: FloatArray, passage: FloatArray) -> float:
    """Mean over the query's tokens of the largest similarity with a token of the passage."""
    if not len(query) or not len(passage):
        return 0.0
    best = [
        (query[first : first + _BLOCK] @ passage.T).max(axis=1)
        for first in range(0, len(query), _BLOCK)
    ]
    return float(np.concatenate(best).mean())


def hybrid_score(query: Outputs, passage: Outputs, weights: Weights) -> float:
    """The outputs' scores weighted, divided by the weights' sum. One of weight 0 may be missing."""
    total = 0.0
    if weights.dense:
        total += weights.dense * dense_score(query.dense, passage.dense)
    if weights.sparse:
        assert query.sparse is not None
        assert passage.sparse is not None
        total += weights.sparse * sparse_score(query.sparse, passage.sparse)
    if weights.colbert:
        assert query.colbert is not None
        assert passage.colbert is not None
        total += weights.colbert * colbert_score(query.colbert, passage.colbert)
    return total / (weights.dense + weights.sparse + weights.colbert)
