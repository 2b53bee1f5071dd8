"""What the lane runs: a step of one resident model, its rows looked at before anybody gets them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from batcher.steps import Pause
from engine.errors import NotFinite
from engine.views import Views
from engine.yielding import pausing
from serving.residents import Resident


def run_step(group: Hashable, payloads: list[Any], pause: Pause | None) -> Any:
    """A group of the plan is a resident model. A row that is no number is an exception instead."""
    assert isinstance(group, Resident)
    group.num_running += 1
    try:
        model = group.model
        if model is None:  # every job of the step was cancelled just now, and its lease ended
            return [None] * len(payloads)
        with pausing(pause):
            rows = model.run(payloads)
    finally:
        group.num_running -= 1
    return [row if _is_finite(row) else NotFinite() for row in rows]


def _is_finite(row: Any) -> bool:
    """Of a text's views, or a pair's score."""
    if not isinstance(row, Views):
        return bool(np.isfinite(row))
    arrays = [row.dense, row.colbert, row.tokens, row.sparse.weights if row.sparse else None]
    return all(bool(np.isfinite(array).all()) for array in arrays if array is not None)
