"""Texts to token ids by the model's own fast tokenizer, exactly as the model was trained.

Truncation and padding stored in tokenizer.json are switched off, because some published files pad
every text to 128 tokens. Truncation here keeps one end of the text and the special tokens. The
tokenizer thread calls this, or the event loop for a short text; the caller holds a lock, because a
Tokenizer is not safe for two threads at once. Must not know tensors, batching or HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers
from transformers import AutoTokenizer

from engine.errors import ModelError, NoTokens, TextTooLong, TooManyCharacters
from engine.folder.sentence_files import read_object
from engine.text.tokens import Side, TextLimits, Token

# A text with more characters than this for each token is tokenized from one end, which grows as
# needed: the head, or the tail where the left is cut off. 30 MB then cost no more than 512 tokens.
_END_CHARS_PER_TOKEN = 16
_MAX_COUNTED_CHARS = 200_000  # up to here a refused text is counted exactly: some 50 ms
MAX_CHARS = 1_000_000  # no call reads more, whatever is asked: all requests share the tokenizer
_MARGIN_TOKENS = 64  # words next to the cut may split differently, so they are not used

_SPECIAL_NAMES = ("cls_token", "eos_token", "pad_token", "unk_token", "bos_token", "sep_token")


@dataclass(frozen=True, slots=True)
class Encoded:
    """`is_cut`: the text has more tokens than these."""

    ids: list[int]
    is_cut: bool = False


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
        """The ids of special tokens by their names in tokenizer_config.json, if known."""
        contents = []
        for name in names:
            token = self._config.get(name)
            contents.append(token.get("content") if isinstance(token, dict) else token)
        ids = [self.backend.token_to_id(c) for c in contents if isinstance(c, str)]
        return [int(token_id) for token_id in ids if token_id is not None]

    def special_ids(self) -> set[int]:
        """The ids that stand for no text: start, end, padding, unknown."""
        return set(self.ids_of(*_SPECIAL_NAMES))

    def token_texts(self, token_ids: Iterable[int]) -> list[str]:
        """The text of each token alone; "" for an unknown id."""
        decode = self.backend.decode
        return [decode([token_id], skip_special_tokens=False) for token_id in token_ids]

    def encode(
        self, texts: Sequence[str], limits: TextLimits, first_index: int = 0
    ) -> list[Encoded]:
        """No text is left without ids. `first_index` is added to a text's index in errors.

        Raises TextTooLong unless `limits.truncate`, NoTokens where no special token is added.
        """
        max_length, side = limits.max_length, limits.side
        ends = [_end(text, max_length, limits.truncate, side) for text in texts]
        special = limits.add_special_tokens
        encodings = self._encoded(ends, special)
        result = []
        for i, (text, end, encoding) in enumerate(zip(texts, ends, encodings, strict=True)):
            encoded = Encoded(self._ended(encoding.ids) if special else encoding.ids)
            if len(encoded.ids) > max_length or len(end) < len(text):
                encoded = self._encode_long(text, len(end), limits, first_index + i)
            if not encoded.ids and not special:
                raise NoTokens(first_index + i, "without special tokens")
            result.append(encoded if encoded.ids else Encoded([self._when_empty], encoded.is_cut))
        return result

    def spell(self, text: str, add_special_tokens: bool = True) -> list[Token]:
        """The ids of `encode` without limits, each with its place. Raises TooManyCharacters."""
        if len(text) > MAX_CHARS:
            raise TooManyCharacters(0, len(text), MAX_CHARS)
        encoding = self.backend.encode(text, add_special_tokens=add_special_tokens)
        rows = zip(encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True)
        tokens = [
            self._special(token_id) if is_added else Token(token_id, text[a:b], False, a, b)
            for token_id, (a, b), is_added in rows
        ]
        if not add_special_tokens:
            return tokens
        if self._end_id is not None:
            kept = self._num_before_end([token.id for token in tokens])
            tokens = [*tokens[:kept], self._special(self._end_id)]
        return tokens or [self._special(self._when_empty)]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Ids that the tokenizer does not know give no text; none may be negative."""
        text: str = self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def _encoded(self, texts: Sequence[str], add_special_tokens: bool) -> list[Any]:
        """The library spreads a batch over threads, and waking one costs more than a short text."""
        if len(texts) == 1:
            return [self.backend.encode(texts[0], add_special_tokens=add_special_tokens)]
        encodings: list[Any] = self.backend.encode_batch_fast(
            texts, add_special_tokens=add_special_tokens
        )
        return encodings

    def content(self, text: str, limits: TextLimits, index: int = 0) -> Any:
        """The encoding without special tokens: of the whole text, or of at least
        `limits.max_length` tokens of the end that `limits.side` leaves, when `limits.truncate` or
        when the text has far more. Raises TooManyCharacters for one of few tokens and huge size
        that may not be cut."""
        num_chars = len(_end(text, limits.max_length, limits.truncate, limits.side))
        return self._content(text, num_chars, limits, index)[0]

    def contents(self, texts: Sequence[str], limits: TextLimits, first_index: int = 0) -> list[Any]:
        """`content` of many texts at once."""
        ends = [_end(text, limits.max_length, limits.truncate, limits.side) for text in texts]
        encodings = self._encoded(ends, False)
        return [
            encoding if len(end) == len(text) else self.content(text, limits, index)
            for index, (text, end, encoding) in enumerate(
                zip(texts, ends, encodings, strict=True), first_index
            )
        ]

    def counts_whole(self, text: str, num_wanted: int) -> bool:
        """Whether `content` without truncation is certain to cover the whole text."""
        return len(_end(text, num_wanted, False, "right")) == len(text)

    def _encode_long(self, text: str, num_chars: int, limits: TextLimits, index: int) -> Encoded:
        """One end's tokens with special ones around them, from as few characters as needed."""
        max_length, special = limits.max_length, limits.add_special_tokens
        side: Side = limits.side if limits.truncate else "right"  # otherwise nothing is cut off
        num_special = self.num_special if special else 0
        wanted = max(0, max_length - num_special)
        bounds = TextLimits(wanted, limits.truncate, side)
        encoding, is_whole = self._content(text, num_chars, bounds, index)
        if special and (is_whole or side == "left"):
            encoding.truncate(self._num_before_end(encoding.ids))  # it is added, and counted, once
        num_tokens = len(encoding.ids) + num_special
        if num_tokens > max_length and not limits.truncate:
            raise TextTooLong(index, num_tokens, max_length, is_whole)
        encoding.truncate(wanted, direction=side)
        ids: list[int] = encoding.ids
        if special:
            ids = self.backend.post_process(encoding, add_special_tokens=True).ids
            ids = self._ended(ids)[:max_length]
        return Encoded(ids, num_tokens > max_length or not is_whole)

    def _content(
        self, text: str, num_chars: int, limits: TextLimits, index: int
    ) -> tuple[Any, bool]:
        """The encoding, and whether it is of the whole text. No call reads more than MAX_CHARS."""
        while True:
            end = _cut(text, min(num_chars, MAX_CHARS), limits.side)
            encoding = self.backend.encode(end, add_special_tokens=False)
            is_whole = len(end) == len(text)
            if is_whole or len(encoding.ids) >= limits.max_length + _MARGIN_TOKENS:
                return encoding, is_whole
            if num_chars >= MAX_CHARS:
                if not limits.truncate:
                    raise TooManyCharacters(index, len(text), MAX_CHARS)
                # a megabyte of almost nothing: its few tokens are all that the text gets
                return encoding, False
            num_chars *= 4

    def _special(self, token_id: int) -> Token:
        return Token(token_id, self.backend.id_to_token(token_id) or "", True, None, None)

    def _ended(self, ids: list[int]) -> list[int]:
        if self._end_id is None:
            return ids
        return [*ids[: self._num_before_end(ids)], self._end_id]

    def _num_before_end(self, ids: list[int]) -> int:
        """Tokens before the end tokens that close `ids`; all of them where none is added."""
        length = len(ids)
        while self._end_id is not None and length and ids[length - 1] == self._end_id:
            length -= 1
        return length


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


def _end(text: str, max_length: int, truncate: bool, side: Side) -> str:
    num_chars = _END_CHARS_PER_TOKEN * (max_length + 2 * _MARGIN_TOKENS)
    num_chars = num_chars if truncate else max(num_chars, _MAX_COUNTED_CHARS)
    return _cut(text, min(num_chars, MAX_CHARS), side)


def _cut(text: str, num_chars: int, side: Side) -> str:
    """At most about `num_chars`, cut at a space if one is near.

    A tail begins with that space: to many tokenizers it belongs to the word behind it.
    """
    if len(text) <= num_chars:
        return text
    if side == "left":
        first = len(text) - num_chars
        space = text.find(" ", first, first + num_chars // 2)
        return text[space:] if space > 0 else text[first:]
    space = text.rfind(" ", num_chars // 2, num_chars)
    return text[:space] if space > 0 else text[:num_chars]
