"""A tokenized text or pair, on its way from the tokenizer thread to the forward. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True)
class PairLimits:
    """Tokens, special ones included. `max_document` bounds the document's own tokens."""

    max_length: int
    truncate: bool = True
    max_document: int | None = None
