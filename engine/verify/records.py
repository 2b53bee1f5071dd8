"""A file of answers that one machine recorded so that another can be compared with it.

Owns the fixed texts and pairs, the JSON format and its check. Vectors are as pooled, float32, exact
to the last bit. Must not know loaded models, torch or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.outputs import FloatArray, Outputs, Sparse

_VERSION = 1
_INPUT_TYPES = (None, "query", "document")

_PASSAGE = (
    "A reservoir stores water behind a dam. In spring the snow of the mountains melts and fills "
    "it; in summer farmers draw from it, and in autumn its level is lowest. "
)
_CHINESE_PASSAGE = (
    "水库在大坝后面蓄水。春天山上的积雪融化，水位升高；夏天农民引水灌溉；秋天水位最低。"
)

# (text, input type): from one word to more than most models take; the last one is cut.
TEXTS: tuple[tuple[str, str | None], ...] = (
    ("Hi", None),
    ("The weather is lovely today.", None),
    ("今天天气真好，适合出去走走。", None),
    ("What is the capital of China?", "query"),
    ("The capital of China is Beijing.", "document"),
    ("水库什么时候水位最低？", "query"),
    (_CHINESE_PASSAGE, "document"),
    (_PASSAGE, None),
    (_CHINESE_PASSAGE * 5, None),
    (_PASSAGE * 16, None),
)
PAIRS: tuple[tuple[str, str], ...] = (
    ("what is panda?", "hi"),
    ("what is panda?", "The giant panda is a bear species endemic to China."),
    ("When is the reservoir's level lowest?", _PASSAGE),
    ("水库什么时候水位最低？", _CHINESE_PASSAGE),
    ("水库什么时候水位最低？", "今天天气真好，适合出去走走。"),
    ("When is the reservoir's level lowest?", _PASSAGE * 16),
)


class BadRecord(Exception):
    """A file of recorded answers cannot be used; the text names the file and the key."""


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """`outputs` holds those outputs that were recorded."""

    text: str
    input_type: str | None
    outputs: Outputs


@dataclass(frozen=True, slots=True)
class PairAnswer:
    """`score` is raw."""

    query: str
    document: str
    score: float


@dataclass(frozen=True, slots=True)
class Record:
    """Texts for an embedder, pairs for a reranker; `decisions` say how the model was served."""

    model: str
    decisions: dict[str, str]
    texts: tuple[TextAnswer, ...] = ()
    pairs: tuple[PairAnswer, ...] = ()

    @property
    def dtype(self) -> str:
        return self.decisions.get("dtype", "")


def write_record(path: Path, record: Record) -> None:
    """Raises BadRecord when it cannot be written."""
    content = {
        "version": _VERSION,
        "model": record.model,
        "decisions": record.decisions,
        "texts": [_text_as_json(text) for text in record.texts],
        "pairs": [
            {"query": pair.query, "document": pair.document, "score": pair.score}
            for pair in record.pairs
        ],
    }
    try:
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadRecord(f"{path}: {error.strerror}") from error


def _text_as_json(answer: TextAnswer) -> dict[str, Any]:
    outputs = answer.outputs
    content: dict[str, Any] = {"text": answer.text, "input_type": answer.input_type}
    content["dense"] = _shortest(outputs.dense)
    if outputs.sparse is not None:
        weights = _shortest(outputs.sparse.weights)
        content["sparse"] = {"token_ids": outputs.sparse.token_ids.tolist(), "weights": weights}
    if outputs.colbert is not None:
        content["colbert"] = [_shortest(row) for row in outputs.colbert]
    return content


def _shortest(values: Iterable[np.float32]) -> list[float]:
    """The fewest digits that give the same float32 again."""
    return [float(str(value)) for value in values]


def read_record(path: Path) -> Record:
    """Raises BadRecord naming the file, the key and what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRecord(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{path}: not JSON: {error}") from error
    try:
        return _read(content)
    except BadRecord as fault:
        raise BadRecord(f"{path}: {fault}") from None


def _read(content: Any) -> Record:
    if not isinstance(content, dict):
        raise BadRecord("not a JSON object")
    if content.get("version") != _VERSION:
        raise BadRecord(f"version: must be {_VERSION}, is {content.get('version')!r}")
    decisions = _get(content, "decisions", dict, "an object", "")
    record = Record(
        model=_get(content, "model", str, "a text", ""),
        decisions={str(key): str(value) for key, value in decisions.items()},
        texts=tuple(_read_text(entry, where) for entry, where in _entries(content, "texts")),
        pairs=tuple(_read_pair(entry, where) for entry, where in _entries(content, "pairs")),
    )
    if not record.texts and not record.pairs:
        raise BadRecord("texts, pairs: at least one text or pair is needed")
    return record


def _entries(content: dict[str, Any], key: str) -> list[tuple[Any, str]]:
    listed = _get(content, key, list, "a list", "") if key in content else []
    return [(entry, f"{key}[{i}]") for i, entry in enumerate(listed)]


def _read_text(entry: Any, where: str) -> TextAnswer:
    text = _get(entry, "text", str, "a text", where)
    input_type = entry.get("input_type")
    if input_type not in _INPUT_TYPES:
        raise BadRecord(f"{where}.input_type: must be null, query or document")
    dense = _numbers(_get(entry, "dense", list, "a list", where), f"{where}.dense", 1)
    sparse = colbert = None
    if entry.get("sparse") is not None:
        sparse = _read_sparse(entry["sparse"], f"{where}.sparse")
    if entry.get("colbert") is not None:
        colbert = _numbers(entry["colbert"], f"{where}.colbert", 2)
    return TextAnswer(text, input_type, Outputs(dense, sparse, colbert))


def _read_sparse(entry: Any, where: str) -> Sparse:
    ids = _numbers(_get(entry, "token_ids", list, "a list", where), f"{where}.token_ids", 1)
    weights = _numbers(_get(entry, "weights", list, "a list", where), f"{where}.weights", 1)
    if len(ids) != len(weights):
        raise BadRecord(f"{where}: {len(ids)} token_ids and {len(weights)} weights")
    token_ids: NDArray[np.int64] = np.array(entry["token_ids"]).astype(np.int64)
    return Sparse(token_ids, weights)


def _read_pair(entry: Any, where: str) -> PairAnswer:
    query = _get(entry, "query", str, "a text", where)
    document = _get(entry, "document", str, "a text", where)
    score = _get(entry, "score", (int, float), "a number", where)
    return PairAnswer(query, document, float(_numbers([score], f"{where}.score", 1)[0]))


def _get(entry: Any, key: str, kind: Any, kind_name: str, where: str) -> Any:
    if not isinstance(entry, dict):
        raise BadRecord(f"{where}: must be an object")
    place = f"{where}.{key}".lstrip(".")
    if key not in entry:
        raise BadRecord(f"{place}: is missing")
    if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
        raise BadRecord(f"{place}: must be {kind_name}")
    return entry[key]


def _numbers(values: Any, where: str, num_axes: int) -> FloatArray:
    try:
        array: FloatArray = np.array(values, dtype=np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadRecord(f"{where}: must hold numbers, in rows of one length") from error
    if array.ndim != num_axes and array.size:
        raise BadRecord(f"{where}: must be a list of {'numbers' if num_axes == 1 else 'rows'}")
    if not np.isfinite(array).all():
        raise BadRecord(f"{where}: holds NaN or infinity")
    return array
