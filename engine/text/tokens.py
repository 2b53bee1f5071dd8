"""A tokenized text or pair on its way to the forward: its ids, limits, key and cost.

A client's own token ids are checked and cut here, and nothing is added to them. No torch here.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.errors import BadTokenIds, NoTokens, TextTooLong

# Fewer leading tokens than this in common with the sequence before are not worth a segment.
_MIN_SHARED = 8

Side = Literal["right", "left"]  # the end that is cut off: right keeps the head, left the tail


@dataclass(frozen=True, slots=True)
class Tokens:
    """One sequence's token ids, special ones included, after truncation.

    `type_ids` tell a pair's two texts apart where the family wants that; None means all 0.
    `num_prompt` leading tokens take no part in pooling. `outputs` are those that are wanted.
    """

    ids: list[int]
    type_ids: list[int] | None = None
    num_prompt: int = 0
    outputs: tuple[str, ...] = ("dense",)

    def key(self) -> bytes:
        """Equal for sequences that have equal rows, and for no others: a 160-bit digest of all that
        the row depends on."""
        digest = hashlib.blake2b(array("q", self.ids).tobytes(), digest_size=20)
        rest = (self.num_prompt, self.outputs, self.type_ids)
        digest.update(repr(rest).encode())
        return digest.digest()


@dataclass(frozen=True, slots=True)
class Token:
    """One token as `spell` shows it. The text has `text` from character `start` to `stop`. A
    special token has no place in it, and its text is its own name."""

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


def check_ids(ids: Sequence[int], vocab_size: int, index: int) -> None:
    """Raises BadTokenIds naming the first id outside 0 to `vocab_size` - 1."""
    if ids and (min(ids) < 0 or max(ids) >= vocab_size):
        bad = next(token_id for token_id in ids if not 0 <= token_id < vocab_size)
        raise BadTokenIds(index, bad, vocab_size)


def cut_ids(ids: Sequence[int], limits: TextLimits, index: int) -> list[int]:
    """At most `limits.max_length` of them. Raises NoTokens, or TextTooLong unless `truncate`."""
    if not ids:
        raise NoTokens(index)
    if len(ids) <= limits.max_length:
        return list(ids)
    if not limits.truncate:
        raise TextTooLong(index, len(ids), limits.max_length)
    if limits.side == "left":
        return list(ids[-limits.max_length :])
    return list(ids[: limits.max_length])


def count_new_tokens(sequences: Sequence[Tokens], shares_prefixes: bool) -> list[int]:
    """Tokens that each sequence adds to a forward, given that a job's sequences run in order."""
    costs = [len(tokens.ids) for tokens in sequences]
    if shares_prefixes:
        for i in range(1, len(sequences)):
            shared = _num_common(sequences[i - 1].ids, sequences[i].ids)
            costs[i] -= shared if shared >= _MIN_SHARED else 0
    return [max(1, cost) for cost in costs]


def _num_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning, by bisection over slices, which compare in C."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
