"""Answers that the authors of models publish: texts, similarities or scores, and where they stand.

A tolerance says how far an answer may be off only because of how the number was published: its
decimals and the type that the authors computed in. What the verifying machine's own type may add is
not here. Plain data: must not know loaded models, torch or HTTP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Measure = Literal["dense", "sparse", "colbert", "score"]
Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """`expected[i][j]` is the measure of query i and document j."""

    measure: Measure
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    expected: Rows
    tolerance: float
    has_input_types: bool = False  # queries and documents take their own prompts


@dataclass(frozen=True, slots=True)
class Published:
    """All that is published for one model. `why` explains the tolerance."""

    model: str  # organisation/name on the hub
    why: str
    examples: tuple[Example, ...]

    @property
    def source(self) -> str:
        """The page that has the numbers."""
        return f"https://huggingface.co/{self.model}"


_M3_QUERIES = ("What is BGE M3?", "Defination of BM25")  # as published, slip included
_M3_DOCUMENTS = (
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector "
    "interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query "
    "terms appearing in each document",
)
_M3: tuple[tuple[Measure, Rows], ...] = (
    ("dense", ((0.6265, 0.3477), (0.3499, 0.678))),
    ("sparse", ((0.19556, 0.00880), (0.0, 0.18030))),
    ("colbert", ((0.77965, 0.46215), (0.45238, 0.78986))),
)
_QWEN3_QUERIES = ("What is the capital of China?", "Explain gravity")
_QWEN3_DOCUMENTS = (
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other. It gives weight to physical "
    "objects and is responsible for the movement of planets around the sun.",
)
_PANDA_DOCUMENTS = (
    "hi",
    "The giant panda (Ailuropoda melanoleuca), sometimes called a panda bear or simply panda, is a "
    "bear species endemic to China.",
)
_MINILM_TEXTS = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
)


def _qwen3(size: str, expected: Rows) -> Published:
    why = "0.005: four decimals, computed from bfloat16 weights; the page leaves the type open"
    example = Example(
        "dense", _QWEN3_QUERIES, _QWEN3_DOCUMENTS, expected, 0.005, has_input_types=True
    )
    return Published(f"Qwen/Qwen3-Embedding-{size}", why, (example,))


def _panda(name: str, expected: tuple[float, float]) -> Published:
    why = "0.05: raw scores in half precision; two published runs of one model differ by 0.008"
    example = Example("score", ("what is panda?",), _PANDA_DOCUMENTS, (expected,), 0.05)
    return Published(f"BAAI/{name}", why, (example,))


PUBLISHED = (
    Published(
        "BAAI/bge-m3",
        "0.003: computed in half precision; the page's own two values of a pair differ by 0.0005",
        tuple(Example(m, _M3_QUERIES, _M3_DOCUMENTS, rows, 0.003) for m, rows in _M3),
    ),
    _qwen3("0.6B", ((0.7646, 0.1414), (0.1355, 0.6000))),
    _qwen3("4B", ((0.7534, 0.1147), (0.0320, 0.6258))),
    _qwen3("8B", ((0.7493, 0.0751), (0.0880, 0.6318))),
    _panda("bge-reranker-v2-m3", (-8.1875, 5.2617)),
    _panda("bge-reranker-large", (-5.6055, 5.7617)),
    Published(
        "sentence-transformers/all-MiniLM-L6-v2",
        "0.001: four decimals, computed in float32",
        (
            Example(
                "dense",
                _MINILM_TEXTS,
                _MINILM_TEXTS,
                ((1.0, 0.6660, 0.1046), (0.6660, 1.0, 0.1411), (0.1046, 0.1411, 1.0)),
                0.001,
            ),
        ),
    ),
)


def find_published(folder_name: str) -> Published | None:
    """By the model's name anywhere in the folder's, as in `BAAI__bge-m3` or `bge-m3-fp16`.

    Upper and lower case do not matter; `0___6B` is how ModelScope writes 0.6B.
    """
    name = folder_name.replace("___", ".").casefold()
    for published in PUBLISHED:
        wanted = re.escape(published.model.rpartition("/")[2].casefold())
        if re.search(rf"(?<![a-z0-9]){wanted}(?![a-z0-9])", name):
            return published
    return None
