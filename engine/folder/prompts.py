"""Which text goes before an input: by prompt name, by input type, or an explicit instruction.

The first source that has one wins: the request, the setting, config_sentence_transformers.json,
what the family's authors publish. No torch here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from engine.errors import BadPrompt, ModelError

_FILE = "config_sentence_transformers.json"
# What clients call queries and documents, and the prompt names that mean the same, best first.
_QUERY = ("query", "search_query", "retrieval.query")
_DOCUMENT = ("document", "passage", "search_document", "retrieval.passage")
_OTHER_TYPES = ("classification", "clustering", "image", "text")

_QWEN3_QUERY = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)
_BGE_QUERY = {
    "en": "Represent this sentence for searching relevant passages: ",
    "zh": "为这个句子生成表示以用于检索相关文章：",
}
_BGE_NAME = re.compile(r"bge-(?:small|base|large)-(en|zh)(?:-v1\.5)?", re.IGNORECASE)
_INSTRUCT = re.compile(r"Instruct: ?(.*?)(\nQuery: ?)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Prompts:
    """`by_name` comes from the model's files or the setting; `query` is the family's own."""

    by_name: dict[str, str]
    default_name: str | None
    query: str
    source: str

    def choose(
        self,
        prompt_name: str | None = None,
        input_type: str | None = None,
        instruction: str | None = None,
    ) -> str:
        """The text before the input; "" for none. Raises BadPrompt naming the known ones.

        An instruction wins over a prompt name, and that over an input type. Instructions are for
        queries, so an input of a document type takes none.
        """
        kind = (input_type or "").lower()
        self._check_type(kind)
        if instruction is not None:
            return "" if kind in _DOCUMENT else self._instruct(instruction)
        if prompt_name is not None:
            if prompt_name not in self.by_name:
                there = ", ".join(sorted(self.by_name)) or "none"
                raise BadPrompt(f"prompt_name '{prompt_name}' is unknown; this model has: {there}")
            return self.by_name[prompt_name]
        if kind in _QUERY:
            return self._first(kind, *_QUERY) or self.query
        if kind in _DOCUMENT:
            return self._first(kind, *_DOCUMENT)
        if kind:
            return self.by_name.get(kind, "")
        return self.by_name.get(self.default_name or "", "")

    def _check_type(self, kind: str) -> None:
        known = (*_QUERY, *_DOCUMENT, *_OTHER_TYPES)
        if kind and kind not in known and kind not in self.by_name:
            raise BadPrompt(f"input_type '{kind}' is unknown; known are {', '.join(known)}")

    def _first(self, *names: str) -> str:
        return next((self.by_name[name] for name in names if self.by_name.get(name)), "")

    def _instruct(self, instruction: str) -> str:
        """In the model's own frame, `Instruct: …\\nQuery:`, if it has one; otherwise as it is."""
        frame = _INSTRUCT.fullmatch(self._first(*_QUERY) or self.query)
        if frame is None or _INSTRUCT.match(instruction):
            return instruction
        return f"Instruct: {instruction}{frame[2]}"


def read_prompts(folder: Path, family: str, setting: dict[str, str] | None) -> Prompts:
    """Raises ModelError when the file is not a JSON object of texts."""
    path = folder / _FILE
    stored: dict[str, object] = {}
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            by_name = {str(k): str(v) for k, v in (stored.get("prompts") or {}).items()}  # type: ignore[attr-defined]
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(f"{path}: {error}") from error
    else:
        by_name = {}
    default = stored.get("default_prompt_name")
    default_name = str(default) if default is not None else None
    if default_name is not None and default_name not in by_name:
        raise ModelError(f"{path}: default_prompt_name {default_name!r} is not among its prompts")
    query, family_source = _family_query(folder, family)
    source = _FILE if any(by_name.values()) else family_source
    if setting is not None:
        by_name, source = {**by_name, **setting}, "setting EMBEDDING_PROMPTS"
        query = "" if "query" in setting else query  # an empty one switches the family's off
    return Prompts(by_name, default_name, query, source)


def _family_query(folder: Path, family: str) -> tuple[str, str]:
    if family == "qwen3":
        return _QWEN3_QUERY, "published for the family"
    if name := _BGE_NAME.search(folder.name):
        return _BGE_QUERY[name[1].lower()], "published for the family"
    return "", "none"
