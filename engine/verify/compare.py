"""Does a loaded model answer what was published for it, or what another machine recorded?

Texts of a comparison run together in one batch, as requests do. A recording runs each alone, so a
comparison checks the batch as well. A limit is what the number's origin allows plus what the type
of the weights here adds. Must not know files, settings or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from numpy.typing import NDArray

from engine.outputs import (
    FloatArray,
    Outputs,
    Sparse,
    colbert_score,
    dense_score,
    sparse_score,
)
from engine.text.tokens import PairLimits, TextLimits
from engine.verify.published import Example, Measure, Published
from engine.verify.records import PAIRS, TEXTS, PairAnswer, Record, TextAnswer

if TYPE_CHECKING:
    from engine.model import EmbeddingModel, RerankingModel

    Model = EmbeddingModel | RerankingModel

_MAX_TOKEN_VECTOR_CHARS = 100  # token vectors of longer texts would make the file huge


@dataclass(frozen=True, slots=True)
class Limits:
    """What a weights' type may change: 1 - cosine; a sparse weight; a score, as a share of it."""

    cosine: float
    weight: float
    score: float
    similarity: float  # of two vectors that both come from here, beside a published number


# float32: other kernels, other orders of sums. The half types: eight to ten bits of each value in
# every layer; a wrong pooling, prompt or weight is off by ten times more.
LIMITS = {
    "float32": Limits(cosine=1e-5, weight=1e-3, score=1e-3, similarity=0.0),
    "float16": Limits(cosine=1e-3, weight=1e-2, score=1e-2, similarity=2e-3),
    "bfloat16": Limits(cosine=1e-2, weight=5e-2, score=5e-2, similarity=2e-2),
}


class WrongKind(Exception):
    """Vectors were expected of a reranker, or scores of an embedder."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison. `skipped` is why it could not be made."""

    what: str
    expected: str = ""
    got: str = ""
    difference: float = 0.0
    limit: float = 0.0
    skipped: str = ""

    @property
    def agrees(self) -> bool:
        return not self.skipped and self.difference <= self.limit  # NaN does not

    @property
    def differs(self) -> bool:
        return not self.skipped and not self.agrees


def decisions(model: Model) -> dict[str, str]:
    """How the model is served: what /health says of it, its query prompt, and the sources."""
    described = {key: str(value) for key, value in model.describe().items() if key != "model"}
    if not model.is_reranker:
        described["query_prompt"] = model.recipe.prompts.choose(input_type="query")
    sources = model.recipe.sources.items()
    return {**described, **{f"{key}_source": source for key, source in sources}}


def check_published(model: Model, published: Published) -> list[Check]:
    """A check for each published number. Raises WrongKind."""
    return [check for example in published.examples for check in _check_example(model, example)]


def record_answers(model: Model) -> Record:
    """The model's answers to the fixed texts or pairs. Raises ValueError for NaN and infinity."""
    if _is_reranker(model):
        scores = [float(_scores(model, [pair])[0]) for pair in PAIRS]
        pairs = tuple(PairAnswer(*pair, score) for pair, score in zip(PAIRS, scores, strict=True))
        if not np.isfinite(scores).all():
            raise ValueError("the model's scores are not finite: NaN or infinity")
        return Record(model.name, decisions(model), pairs=pairs)
    assert _is_embedder(model)
    texts = []
    for text, input_type in TEXTS:
        asked = model.outputs if len(text) <= _MAX_TOKEN_VECTOR_CHARS else ("dense",)
        (outputs,) = _outputs(model, [(text, input_type, asked)])
        if not np.isfinite(outputs.dense).all():
            raise ValueError("the model's vectors are not finite: NaN or infinity")
        texts.append(TextAnswer(text, input_type, outputs))
    return Record(model.name, decisions(model), texts=tuple(texts))


def check_record(model: Model, record: Record) -> list[Check]:
    """A check for each recorded vector or score. Raises WrongKind."""
    limits = _looser(str(model.describe()["dtype"]), record.dtype)
    if _is_reranker(model):
        if record.texts:
            raise WrongKind(f"texts were recorded, but {model.name} is a reranker")
        scores = _scores(model, [(pair.query, pair.document) for pair in record.pairs])
        return [
            _compare_numbers(f"score, pair {i + 1}", pair.score, score, limits.score)
            for i, (pair, score) in enumerate(zip(record.pairs, scores, strict=True))
        ]
    assert _is_embedder(model)
    if record.pairs:
        raise WrongKind(f"pairs were recorded, but {model.name} gives vectors")
    asked = [(text.text, text.input_type, _recorded(text.outputs, model)) for text in record.texts]
    checks: list[Check] = []
    for i, (text, got) in enumerate(zip(record.texts, _outputs(model, asked), strict=True)):
        suffix = f", {text.input_type}" if text.input_type else ""
        checks += _compare_outputs(f"text {i + 1}{suffix}", text.outputs, got, limits)
    return checks


def _check_example(model: Model, example: Example) -> Iterator[Check]:
    limits = LIMITS.get(str(model.describe()["dtype"]), LIMITS["float32"])
    if example.measure != "score" and _is_embedder(model):
        if example.measure not in model.outputs:
            yield Check(example.measure, skipped="the folder lacks this output")
            return
        got = _similarities(model, example, example.measure)
        share = limits.similarity
    elif example.measure == "score" and _is_reranker(model):
        pairs = [(query, document) for query in example.queries for document in example.documents]
        got = _scores(model, pairs).reshape(len(example.queries), -1)
        share = limits.score if limits is not LIMITS["float32"] else 0.0
    else:
        raise WrongKind(f"{model.name} is no model of the kind that its name says")
    for i, row in enumerate(example.expected):
        for j, expected in enumerate(row):
            what = f"{example.measure} q{i + 1}p{j + 1}"
            yield _compare_numbers(what, expected, got[i, j], share, example.tolerance)


def _similarities(model: EmbeddingModel, example: Example, measure: Measure) -> FloatArray:
    """`[queries, documents]`"""
    output = () if measure == "dense" else (measure,)
    texts_of_type = (example.queries, "query"), (example.documents, "document")
    asked = [
        (text, input_type if example.has_input_types else None, ("dense", *output))
        for texts, input_type in texts_of_type
        for text in texts
    ]
    outputs = _outputs(model, asked)
    num_queries = len(example.queries)
    rows = [
        [_similarity(query, document, measure) for document in outputs[num_queries:]]
        for query in outputs[:num_queries]
    ]
    return np.array(rows, dtype=np.float32)


def _similarity(query: Outputs, document: Outputs, measure: Measure) -> float:
    if measure == "sparse":
        assert query.sparse is not None
        assert document.sparse is not None
        return sparse_score(query.sparse, document.sparse)
    if measure == "colbert":
        assert query.colbert is not None
        assert document.colbert is not None
        return colbert_score(query.colbert, document.colbert)
    return dense_score(query.dense, document.dense)


def _outputs(
    model: EmbeddingModel, asked: Sequence[tuple[str, str | None, tuple[str, ...]]]
) -> list[Outputs]:
    """(text, input type, outputs) each, in one batch."""
    batch = []
    for text, input_type, outputs in asked:
        prompt = model.prompt(None, input_type, None)
        batch += model.tokenize([text], TextLimits(model.max_length), prompt, outputs)
    return model.run(batch)


def _scores(model: RerankingModel, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
    return model.run(model.tokenize_pairs(pairs, PairLimits(model.max_length)))


def _recorded(outputs: Outputs, model: EmbeddingModel) -> tuple[str, ...]:
    """Outputs to ask for: those that were recorded and that the model has."""
    more = [output for output in ("sparse", "colbert") if getattr(outputs, output) is not None]
    return ("dense", *(output for output in more if output in model.outputs))


def _compare_outputs(what: str, expected: Outputs, got: Outputs, limits: Limits) -> Iterator[Check]:
    yield _compare_rows(f"dense, {what}", expected.dense[None], got.dense[None], limits.cosine)
    if expected.sparse is not None:
        yield _compare_sparse(f"sparse, {what}", expected.sparse, got.sparse, limits.weight)
    if expected.colbert is not None:
        yield _compare_rows(f"colbert, {what}", expected.colbert, got.colbert, limits.cosine)


def _compare_rows(what: str, expected: FloatArray, got: FloatArray | None, limit: float) -> Check:
    """1 - cosine of the two rows that are furthest apart."""
    if got is None or got.shape != expected.shape:
        shape = "no such output" if got is None else "x".join(map(str, got.shape))
        return Check(what, "x".join(map(str, expected.shape)), shape, np.inf, limit)
    cosines = [dense_score(*pair) for pair in zip(expected, got, strict=True)]
    difference = float(np.max(1 - np.array(cosines, dtype=np.float64), initial=0.0))
    return Check(what, _beginning(expected), _beginning(got), difference, limit)


def _compare_sparse(what: str, expected: Sparse, got: Sparse | None, limit: float) -> Check:
    """The largest difference of a token's weight."""
    if got is None:
        return Check(what, f"{len(expected.weights)} tokens", "no such output", np.inf, limit)
    ids = np.union1d(expected.token_ids, got.token_ids)
    weights = np.zeros((2, len(ids)))
    for row, sparse in zip(weights, (expected, got), strict=True):
        row[np.searchsorted(ids, sparse.token_ids)] = sparse.weights
    difference = float(np.abs(weights[0] - weights[1]).max(initial=0.0))
    then, now = f"{len(expected.weights)} tokens", f"{len(got.weights)} tokens"
    return Check(what, then, now, difference, limit)


def _compare_numbers(
    what: str, expected: float, got: float, share: float, tolerance: float = 0.0
) -> Check:
    limit = tolerance + share * max(1.0, abs(expected))
    return Check(what, f"{expected:.4f}", f"{got:.4f}", abs(float(got) - expected), limit)


def _beginning(rows: FloatArray) -> str:
    first = " ".join(f"{value:.3f}" for value in rows[:1, :3].ravel())
    return f"{first} ..."


def _looser(*dtypes: str) -> Limits:
    known = [LIMITS.get(dtype, LIMITS["float32"]) for dtype in dtypes]
    return max(known, key=lambda limits: limits.cosine)


def _is_reranker(model: Model) -> TypeGuard[RerankingModel]:
    return model.is_reranker


def _is_embedder(model: Model) -> TypeGuard[EmbeddingModel]:
    return not model.is_reranker
