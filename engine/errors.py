"""What can go wrong in the engine, in the few classes that callers distinguish. No torch here."""

from __future__ import annotations


class ModelError(Exception):
    """A model folder cannot be served; the message names the file and the reason."""


class TextTooLong(Exception):
    """A text has more tokens than the limit, and truncation was refused."""

    def __init__(self, index: int, num_tokens: int, max_tokens: int, is_exact: bool = True) -> None:
        """`is_exact` is false when only the head of a huge text was counted."""
        count = f"{num_tokens} tokens" if is_exact else f"at least {num_tokens} tokens"
        super().__init__(f"input {index} has {count}, the limit is {max_tokens}")
        self.index, self.num_tokens, self.max_tokens = index, num_tokens, max_tokens


class TooManyCharacters(TextTooLong):
    """A text of few tokens for its size, which may not be cut: only a head of it is ever read."""

    def __init__(self, index: int, num_chars: int, max_chars: int) -> None:
        """`num_tokens` and `max_tokens` are not known to matter: the text was not read whole."""
        super().__init__(index, 0, 0)
        self.args = (
            f"input {index} has {num_chars} characters, of which at most {max_chars} are read; "
            "shorten it, or let it be truncated",
        )


class NoTokens(Exception):
    """An input without a single token, so there is nothing to compute."""

    def __init__(self, index: int, why: str = "") -> None:
        super().__init__(f"input {index} has no tokens{why and ' '}{why}")
        self.index = index


class BadTokenIds(Exception):
    """A client's own token id for which the model has no embedding."""

    def __init__(self, index: int, token_id: int, vocab_size: int) -> None:
        super().__init__(
            f"input {index} has the token id {token_id}, which is not in the model's vocabulary of "
            f"{vocab_size} (0 to {vocab_size - 1})"
        )
        self.index, self.token_id, self.vocab_size = index, token_id, vocab_size


class BadPrompt(Exception):
    """A request names a prompt or an input type that the model does not have."""


class NotFinite(Exception):
    """A text's embedding, or a pair's score, is NaN or infinite."""

    def __init__(self) -> None:
        super().__init__("the model's answer is not a finite number")
