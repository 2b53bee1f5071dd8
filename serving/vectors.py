"""Vectors on their way out: cut, normalised, and made ready to be written, as numbers or base64.

Works on whole numpy arrays; no Python float is ever made of a vector's value.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.views import Sparse

_TINY = 1e-12  # below this norm a vector is left as it is, as torch's normalize does


def finish(
    rows: NDArray[np.float32], dimensions: int | None = None, normalize: bool = True
) -> NDArray[np.float32]:
    """`[n, dim]` float32 -> `[n, dimensions]`: cut first, then L2 over what is left."""
    cut = rows[:, :dimensions]
    if normalize and len(cut) == 1:  # a query's: half the calls, which are cold after a forward
        wide = cut[0].astype(np.float64)
        cut = cut / np.float32(max(math.sqrt(wide @ wide), _TINY))
    elif normalize:
        norms = np.sqrt(np.einsum("nd,nd->n", cut, cut, dtype=np.float64))
        cut = cut / np.maximum(norms, _TINY)[:, None].astype(np.float32)
    return np.ascontiguousarray(cut, dtype=np.float32)


def to_base64(rows: NDArray[np.float32]) -> list[str]:
    """Each row's little-endian float32 bytes."""
    little = rows.astype("<f4", copy=False)
    return [base64.b64encode(row.tobytes()).decode("ascii") for row in little]


def to_weights(
    sparse: Sparse, texts_of: Callable[[Sequence[int]], list[str]] | None = None
) -> dict[str, np.float32]:
    """`{token id: weight}`, or by the tokens' texts; of equal texts the largest weight counts."""
    if texts_of is None:
        return dict(zip(map(str, sparse.token_ids.tolist()), sparse.weights, strict=True))
    texts = texts_of(sparse.token_ids.tolist())
    weights: dict[str, np.float32] = {}
    for text, weight in zip(texts, sparse.weights, strict=True):
        weights[text] = max(weight, weights.get(text, weight))
    return weights
