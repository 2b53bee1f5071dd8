"""What a request can meet, as the few kinds that callers tell apart. No HTTP here: a text for the
caller, and where it helps the field at fault and a time after which to ask again.
"""

from __future__ import annotations

from batcher.admission import Overloaded as Overloaded


class ServingError(Exception):
    """`param` names the field at fault, `code` is a short name of the fault; both may be None.

    `retry_after_s` says when to ask again, where that is known.
    """

    retry_after_s: int | None = None

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class InvalidRequest(ServingError):
    """The text names the field and the limit."""


class NotFound(ServingError):
    """No model of that name."""


class Unavailable(ServingError):
    """Nothing is served at the moment, or not this model."""

    def __init__(self, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(Unavailable):
    """The server is starting, draining, or has failed."""


class TooLate(Unavailable):
    """The request's own timeout has passed."""


class CallerGone(Exception):
    """Nobody waits for the answer any more."""
