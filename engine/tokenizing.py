"""Texts to token ids, exactly as the model was trained: its own fast tokenizer.

Truncation and padding stored inside tokenizer.json are switched off (some published files pad every
text to 128); truncation here keeps the head and the special tokens. One thread owns a Tokenizer:
it is not safe for two. Must not know tensors, batching or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers
from transformers import AutoTokenizer

from engine.errors import ModelError, TextTooLong
from engine.sentence_files import read_object

# A text longer than this many characters a token is tokenized in a growing head first: 30 MB of
# text cut to 512 tokens then costs what 512 tokens cost.
_HEAD_CHARS_PER_TOKEN = 16
_MAX_COUNTED_CHARS = 200_000  # a refused text's exact length is told up to here: some 50 ms
_MAX_HEAD_CHARS = 1_000_000  # no head grows further: the one tokenizer thread is everybody's
_HEAD_MARGIN_TOKENS = 64  # the last words of a cut head may split otherwise; never use them

_SPECIAL_NAMES = ("cls_token", "eos_token", "pad_token", "unk_token", "bos_token", "sep_token")


class Tokenizer:
    """`max_length` counts special tokens too, as everywhere in this project.

    With `ends_with` every text ends in that token exactly once, whether the tokenizer appends it,
    the text already has it, or neither.
    """

    def __init__(
        self, folder: Path, *, lower_case: bool = False, ends_with: str | None = None
    ) -> None:
        backend = _load(folder)
        backend.no_truncation()
        backend.no_padding()
        if lower_case:
            kept = [] if backend.normalizer is None else [backend.normalizer]
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *kept])
        self.backend = backend
        self._config = read_object(folder / "tokenizer_config.json", missing_ok=True)
        special: list[int] = backend.encode("").ids
        end_id = backend.token_to_id(ends_with) if ends_with else None
        # A tokenizer that frames texts in another way knows better than the family's rule.
        self._end_id = end_id if special in ([], [end_id]) else None
        self.num_special = len(special) if self._end_id is None else 1
        self._when_empty = next(iter(self.ids_of("eos_token", "pad_token")), 0)

    def ids_of(self, *names: str) -> list[int]:
        """The ids of special tokens by their names in tokenizer_config.json; unknown ones lack."""
        contents = []
        for name in names:
            token = self._config.get(name)
            contents.append(token.get("content") if isinstance(token, dict) else token)
        ids = [self.backend.token_to_id(c) for c in contents if isinstance(c, str)]
        return [int(token_id) for token_id in ids if token_id is not None]

    def special_ids(self) -> set[int]:
        """Ids that stand for no text: start, end, padding, unknown."""
        return set(self.ids_of(*_SPECIAL_NAMES))

    def token_texts(self, token_ids: Iterable[int]) -> list[str]:
        """What each token alone stands for; "" for an id that is none."""
        decode = self.backend.decode
        return [decode([token_id], skip_special_tokens=False) for token_id in token_ids]

    def encode(
        self, texts: Sequence[str], max_length: int, truncate: bool, first_index: int = 0
    ) -> list[list[int]]:
        """Ids with special tokens, never none.

        Raises TextTooLong (with `first_index` added to the text's index) unless `truncate`.
        """
        heads = [_head(text, max_length, truncate) for text in texts]
        encodings = self.backend.encode_batch_fast(heads, add_special_tokens=True)
        result = []
        for i, (text, head, encoding) in enumerate(zip(texts, heads, encodings, strict=True)):
            ids: list[int] = self._ended(encoding.ids)
            if len(ids) > max_length or len(head) < len(text):
                ids = self._encode_long(text, len(head), max_length, truncate, first_index + i)
            result.append(ids or [self._when_empty])
        return result

    def content(self, text: str, num_wanted: int, truncate: bool) -> Any:
        """The encoding without special tokens: of the whole text, or of at least `num_wanted`
        tokens of its head when `truncate`."""
        return self._content(text, len(_head(text, num_wanted, truncate)), num_wanted, truncate)[0]

    def contents(self, texts: Sequence[str], num_wanted: int, truncate: bool) -> list[Any]:
        """`content` of many texts at once."""
        heads = [_head(text, num_wanted, truncate) for text in texts]
        encodings = self.backend.encode_batch_fast(heads, add_special_tokens=False)
        return [
            encoding if len(head) == len(text) else self.content(text, num_wanted, truncate)
            for text, head, encoding in zip(texts, heads, encodings, strict=True)
        ]

    def counts_whole(self, text: str, num_wanted: int) -> bool:
        """Whether `content` without truncation is surely of the whole text."""
        return len(_head(text, num_wanted, truncate=False)) == len(text)

    def _encode_long(
        self, text: str, num_chars: int, max_length: int, truncate: bool, index: int
    ) -> list[int]:
        """The head's tokens with special ones around them, from as few characters as needed."""
        wanted = max(0, max_length - self.num_special)
        encoding, is_whole = self._content(text, num_chars, wanted, truncate)
        has_end = self._end_id is not None  # counted once, in the text or after it
        num_tokens = len(self._ended(encoding.ids)) + self.num_special - has_end
        if num_tokens > max_length and not truncate:
            raise TextTooLong(index, num_tokens, max_length, is_whole)
        encoding.truncate(wanted)
        ids = self.backend.post_process(encoding, add_special_tokens=True).ids
        return self._ended(ids)[:max_length]

    def _content(
        self, text: str, num_chars: int, num_wanted: int, truncate: bool
    ) -> tuple[Any, bool]:
        """And whether it is of the whole text."""
        while True:
            head = _cut(text, num_chars)
            encoding = self.backend.encode(head, add_special_tokens=False)
            is_whole = len(head) == len(text)
            if is_whole or len(encoding.ids) >= num_wanted + _HEAD_MARGIN_TOKENS:
                return encoding, is_whole
            if truncate and num_chars >= _MAX_HEAD_CHARS:
                # a megabyte of next to nothing: what it has is what the text gets
                return encoding, False
            num_chars *= 4

    def _ended(self, ids: list[int]) -> list[int]:
        if self._end_id is None:
            return ids
        length = len(ids)
        while length and ids[length - 1] == self._end_id:
            length -= 1
        return [*ids[:length], self._end_id]


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


def _head(text: str, max_length: int, truncate: bool) -> str:
    num_chars = _HEAD_CHARS_PER_TOKEN * (max_length + 2 * _HEAD_MARGIN_TOKENS)
    return _cut(text, num_chars if truncate else max(num_chars, _MAX_COUNTED_CHARS))


def _cut(text: str, num_chars: int) -> str:
    """At most about `num_chars`, cut where a space ends a word if one is near."""
    if len(text) <= num_chars:
        return text
    space = text.rfind(" ", num_chars // 2, num_chars)
    return text[:space] if space > 0 else text[:num_chars]
