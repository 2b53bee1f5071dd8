"""A tokenized text or pair, on its way from the tokenizer thread to the forward. No torch here."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from typing import Literal

Side = Literal["right", "left"]  # the end that is cut off: right keeps the head, left the tail


@dataclass(frozen=True, slots=True)
class Tokens:
    """One sequence's token ids, special ones included, after truncation.

    `type_ids` tell a pair's two texts apart where the family wants that; None means all 0.
    `num_prompt` leading tokens take no part in pooling. `views` are the outputs wanted of it.
    """

    ids: list[int]
    type_ids: list[int] | None = None
    num_prompt: int = 0
    views: tuple[str, ...] = ("dense",)

    def key(self) -> bytes:
        """The same for sequences that have the same row, and for no others: 160 bits of a digest
        of everything that the row depends on."""
        digest = hashlib.blake2b(array("q", self.ids).tobytes(), digest_size=20)
        rest = (self.num_prompt, self.views, self.type_ids)
        digest.update(repr(rest).encode())
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Token:
    """One token as `spell` shows it. `start` and `stop` count characters of the text, which has
    `text` there; a special token is at no place in it, and its text is its own name."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


@dataclass(frozen=True, slots=True)
class TextLimits:
    """`max_length` in tokens, special ones included where they are added."""

    max_length: int
    truncate: bool = True
    side: Side = "right"
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class PairLimits:
    """Tokens, special ones included. `max_document` bounds the document's own tokens.

    `side` is the document's; the query stays whole if it can.
    """

    max_length: int
    truncate: bool = True
    max_document: int | None = None
    side: Side = "right"
