"""How outputs are made of token weights, and how two texts' outputs compare."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.outputs import (
    Outputs,
    Sparse,
    Weights,
    colbert_score,
    dense_rows,
    dense_score,
    hybrid_score,
    lexical_weights,
    sparse_score,
)
from tests.engine import oracle

token_weights = st.lists(st.tuples(st.integers(0, 9), st.floats(0, 4, width=32)), max_size=12)


def floats(*values: object) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def sparse_of(tokens: list[tuple[int, float]]) -> Sparse:
    ids = np.array([token_id for token_id, _ in tokens], dtype=np.int64)
    return lexical_weights(ids, floats(*(weight for _, weight in tokens)))


def as_dict(sparse: Sparse) -> dict[int, float]:
    return dict(zip(sparse.token_ids.tolist(), sparse.weights.tolist(), strict=True))


@given(token_weights)
def test_a_token_counts_once_with_its_largest_weight_and_never_with_none(
    tokens: list[tuple[int, float]],
) -> None:
    wanted: dict[int, float] = {}
    for token_id, weight in tokens:
        if weight > 0:
            wanted[token_id] = max(weight, wanted.get(token_id, 0.0))
    got = sparse_of(tokens)
    assert as_dict(got) == wanted
    assert got.token_ids.tolist() == sorted(wanted)


@given(token_weights, token_weights)
def test_a_lexical_score_is_the_authors(
    left: list[tuple[int, float]], right: list[tuple[int, float]]
) -> None:
    a, b = sparse_of(left), sparse_of(right)
    wanted = oracle.lexical_score(as_dict(a), as_dict(b))
    assert sparse_score(a, b) == pytest.approx(wanted, abs=1e-4)
    assert sparse_score(b, a) == pytest.approx(wanted, abs=1e-4)


def test_a_dense_score_is_the_cosine_and_none_for_a_zero_vector() -> None:
    assert dense_score(floats(3, 4), floats(6, 8)) == pytest.approx(1)
    assert dense_score(floats(3, 4), floats(-4, 3)) == pytest.approx(0)
    assert dense_score(floats(0, 0), floats(3, 4)) == 0


def test_a_colbert_score_is_the_mean_of_each_query_tokens_best() -> None:
    query, passage = floats([1, 0], [0, 1]), floats([0.6, 0.8], [0.8, 0.6], [1, 0])
    assert colbert_score(query, passage) == pytest.approx((1 + 0.8) / 2)
    assert colbert_score(passage, query) == pytest.approx((0.8 + 0.8 + 1) / 3)
    assert colbert_score(query, passage) == pytest.approx(oracle.colbert_score(query, passage))


def test_a_text_without_tokens_matches_nothing() -> None:
    nothing, something = np.empty((0, 2), np.float32), floats([1, 0])
    assert colbert_score(nothing, something) == colbert_score(something, nothing) == 0
    assert sparse_score(sparse_of([]), sparse_of([(1, 1.0)])) == 0


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (Weights(), 1.0),
        (Weights(0, 1, 0), 6.0),
        (Weights(0, 0, 5), 0.5),
        (Weights(1, 1, 1), (1.0 + 6.0 + 0.5) / 3),
        (Weights(0.4, 0.2, 0.4), 0.4 + 0.2 * 6.0 + 0.4 * 0.5),
        (Weights(2, 1, 0), (2 * 1.0 + 6.0) / 3),
    ],
)
def test_a_hybrid_score_is_the_weighted_mean_of_the_three(weights: Weights, wanted: float) -> None:
    left = Outputs(floats(1, 0), sparse_of([(1, 2.0), (2, 9.0)]), floats([1, 0]))
    right = Outputs(floats(2, 0), sparse_of([(1, 3.0), (3, 9.0)]), floats([0.5, 0.5]))
    assert hybrid_score(left, right, weights) == pytest.approx(wanted)


def test_a_view_of_weight_zero_may_lack() -> None:
    outputs = Outputs(floats(1, 0))
    assert hybrid_score(outputs, outputs, Weights()) == pytest.approx(1)


def test_dense_vectors_of_many_texts_are_rows() -> None:
    rows = dense_rows([Outputs(floats(1, 2)), Outputs(floats(3, 4))])
    np.testing.assert_array_equal(rows, floats([1, 2], [3, 4]))
