"""Token ids that a client made itself: taken as they are, checked and cut, nothing added.

Must not know tokenizers, tensors or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import BadTokenIds, NoTokens, TextTooLong
from engine.tokens import TextLimits


def check_ids(ids: Sequence[int], vocab_size: int, index: int) -> None:
    """Raises BadTokenIds naming the first id that is not from 0 to `vocab_size` - 1."""
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
