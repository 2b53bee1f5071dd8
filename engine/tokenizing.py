"""Texts to token ids, exactly as the model was trained: its own fast tokenizer.

Truncation and padding stored inside tokenizer.json are switched off (some published files pad every
text to 128); truncation here keeps the head and the special tokens. One thread owns a Tokenizer:
it is not safe for two. Must not know tensors, batching or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from transformers import AutoTokenizer

from engine.errors import ModelError, TextTooLong
from engine.tokens import Tokens

# A text longer than this many characters a token is tokenized in a growing head first: 30 MB of
# text cut to 512 tokens then costs what 512 tokens cost.
_HEAD_CHARS_PER_TOKEN = 16
_MAX_COUNTED_CHARS = 200_000  # a refused text's exact length is told up to here: some 50 ms
_MAX_HEAD_CHARS = 1_000_000  # no head grows further: the one tokenizer thread is everybody's
_HEAD_MARGIN_TOKENS = 64  # the last words of a cut head may split otherwise; never use them

_NO_LIMIT = 1 << 30  # transformers writes 1e30 where a tokenizer knows no limit


class Tokenizer:
    """`max_length` counts special tokens too, as everywhere in this project."""

    def __init__(self, folder: Path) -> None:
        backend = _load(folder)
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        config = _read_json(folder / "tokenizer_config.json")
        self.model_max_length = int(min(config.get("model_max_length") or _NO_LIMIT, _NO_LIMIT))
        self._num_special = len(backend.encode("").ids)
        self._when_empty = self._padding_id(config)

    def _padding_id(self, config: dict[str, Any]) -> int:
        """What stands for a text without any token, where the model adds no special ones."""
        for key in ("eos_token", "pad_token"):
            token = config.get(key)
            content = token.get("content") if isinstance(token, dict) else token
            token_id = self._backend.token_to_id(content) if isinstance(content, str) else None
            if token_id is not None:
                return int(token_id)
        return 0

    def encode(
        self, texts: Sequence[str], max_length: int, truncate: bool, first_index: int = 0
    ) -> list[Tokens]:
        """Raises TextTooLong (with `first_index` added to the text's index) unless `truncate`."""
        heads = [_head(text, max_length, truncate) for text in texts]
        encodings = self._backend.encode_batch_fast(heads, add_special_tokens=True)
        result = []
        for i, (text, head, encoding) in enumerate(zip(texts, heads, encodings, strict=True)):
            ids: list[int] = encoding.ids
            if len(ids) > max_length or len(head) < len(text):
                ids = self._encode_long(text, len(head), max_length, truncate, first_index + i)
            result.append(Tokens(ids or [self._when_empty]))
        return result

    def _encode_long(
        self, text: str, num_chars: int, max_length: int, truncate: bool, index: int
    ) -> list[int]:
        """The head's tokens with special ones around them, from as few characters as needed."""
        wanted = max(0, max_length - self._num_special)
        while True:
            head = _cut(text, num_chars)
            encoding = self._backend.encode(head, add_special_tokens=False)
            is_whole = len(head) == len(text)
            if is_whole or len(encoding.ids) >= wanted + _HEAD_MARGIN_TOKENS:
                break
            if truncate and num_chars >= _MAX_HEAD_CHARS:
                break  # a megabyte of next to nothing: what it has is what the text gets
            num_chars *= 4
        if len(encoding.ids) > wanted and not truncate:
            num_tokens = len(encoding.ids) + self._num_special
            raise TextTooLong(index, num_tokens, max_length, is_whole)
        encoding.truncate(wanted)
        ids: list[int] = self._backend.post_process(encoding, add_special_tokens=True).ids
        return ids[:max_length]


def _load(folder: Path) -> Any:
    """tokenizer.json as published; transformers' own class only where that file is missing.

    transformers rebuilds some tokenizers from their class and then loses what the file adds, such
    as Qwen3-Embedding's final <|endoftext|>.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path}: {error}") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        return tokenizer.backend_tokenizer
    except (OSError, ValueError, AttributeError, ImportError) as error:
        raise ModelError(f"{folder}: no tokenizer.json, and none can be made: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return stored if isinstance(stored, dict) else {}


def _head(text: str, max_length: int, truncate: bool) -> str:
    num_chars = _HEAD_CHARS_PER_TOKEN * (max_length + 2 * _HEAD_MARGIN_TOKENS)
    return _cut(text, num_chars if truncate else max(num_chars, _MAX_COUNTED_CHARS))


def _cut(text: str, num_chars: int) -> str:
    """At most about `num_chars`, cut where a space ends a word if one is near."""
    if len(text) <= num_chars:
        return text
    space = text.rfind(" ", num_chars // 2, num_chars)
    return text[:space] if space > 0 else text[:num_chars]
