"""Who may come in: how many requests are open, what tokens they hold, and when one would be done.

It knows no clock, queue or HTTP: it is told durations, so its policy is tested by tables. A request
is admitted before its body is read, reserves its tokens from when they are counted until its rows
are there, and leaves when it is answered. Only `Rate` is called from other threads.
Invariant: neither limit is ever exceeded, except by one request that alone has more tokens.
"""

from __future__ import annotations

import math
import threading
from types import TracebackType

MAX_RETRY_S = 600
_UNMEASURED_RETRY_S = 5
_HALF_LIFE_S = 10.0  # of computing: the rate follows the last minute, not the last hour


class Overloaded(Exception):
    """The request is refused as a whole. The text names the setting, its limit and the load."""

    def __init__(self, text: str, retry_after_s: int) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Rate:
    """Tokens per second in the recent past. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = self._seconds = 0.0

    def count(self, num_tokens: int, seconds: float) -> None:
        """Count a batch that has run."""
        with self._lock:
            kept = 0.5 ** (seconds / _HALF_LIFE_S)
            self._tokens = self._tokens * kept + num_tokens
            self._seconds = self._seconds * kept + seconds

    def doubt(self) -> None:
        """Assume twice the rate next time: a request was refused although nothing was ahead of it.
        Short texts alone, or a busy machine, show less than it can do, and requests that are always
        refused never show more."""
        with self._lock:
            self._seconds /= 2

    def seconds_for(self, num_tokens: int) -> float | None:
        """How long so many tokens take; None while nothing is measured."""
        with self._lock:
            if not self._tokens:
                return None
            return num_tokens * self._seconds / self._tokens


class Admission:
    """At most `max_requests` are open at a time, and together they reserve at most `max_tokens`.

    Requests of at most `max_urgent_tokens` may overtake all others.
    """

    def __init__(
        self, max_tokens: int, max_requests: int, rate: Rate, max_urgent_tokens: int = 0
    ) -> None:
        self._max_tokens, self._max_requests = max_tokens, max_requests
        self._max_urgent_tokens = max_urgent_tokens
        self._rate = rate
        self.num_requests = 0
        self.num_reserving = 0  # those that hold tokens
        self.num_tokens = 0
        self._num_urgent_tokens = 0  # of requests that may overtake
        self.num_refused = 0

    @property
    def retry_after_s(self) -> int:
        """When the reserved tokens will be done at the measured rate: 1 to MAX_RETRY_S."""
        seconds = self._rate.seconds_for(self.num_tokens)
        if seconds is None:
            return _UNMEASURED_RETRY_S
        return max(1, math.ceil(min(seconds, MAX_RETRY_S)))

    def admit(self) -> Reservation:
        """Open a request. Raises Overloaded when there is no room for it, or for any token."""
        if self.num_requests >= self._max_requests:
            raise self._refuse(
                f"the queue is full: {self.num_requests} requests are open, "
                f"the limit is {self._max_requests} (max_queue_requests)"
            )
        if self.num_tokens >= self._max_tokens:
            raise self._refuse(
                f"the queue is full: it holds {self.num_tokens} tokens, "
                f"the limit is {self._max_tokens} (max_queue_tokens)"
            )
        self.num_requests += 1
        return Reservation(self)

    def _reserve(self, reservation: Reservation, num_tokens: int, within_s: float | None) -> None:
        grows = num_tokens > reservation.num_tokens
        self._set(reservation, 0)
        is_too_much = self.num_tokens + num_tokens > self._max_tokens
        if grows and self.num_tokens and is_too_much:
            raise self._refuse(
                f"the queue is full: it holds {self.num_tokens} tokens and this request has "
                f"{num_tokens} or more, the limit is {self._max_tokens} (max_queue_tokens)"
            )
        if within_s is not None:
            self._check_in_time(num_tokens, within_s)
        self._set(reservation, num_tokens)

    def _check_in_time(self, own: int, within_s: float) -> None:
        """Raises Overloaded when a request cannot be done within its time.

        Requests that hold tokens share the rate equally. At the earliest a request is done when all
        of them are, or when each has had as much as it needs itself, or, if it may overtake, when
        those that may as well are done."""
        ahead = min(self.num_tokens + own, own * (self.num_reserving + 1))
        if own <= self._max_urgent_tokens:
            ahead = min(ahead, self._num_urgent_tokens + own)
        seconds = self._rate.seconds_for(ahead)
        if seconds is None or seconds <= within_s:
            return
        refusal = self._refuse(
            f"this request cannot be done in time: it would take about {seconds:.3g} s, "
            f"{max(0.0, within_s):.3g} s are left of its timeout"
        )
        if not self.num_tokens:
            self._rate.doubt()
        raise refusal

    def _set(self, reservation: Reservation, num_tokens: int) -> None:
        self.num_tokens += num_tokens - reservation.num_tokens
        self._num_urgent_tokens += self._urgent(num_tokens) - self._urgent(reservation.num_tokens)
        self.num_reserving += bool(num_tokens) - bool(reservation.num_tokens)
        reservation.num_tokens = num_tokens

    def _urgent(self, num_tokens: int) -> int:
        return num_tokens if num_tokens <= self._max_urgent_tokens else 0

    def _leave(self, reservation: Reservation) -> None:
        self._set(reservation, 0)
        self.num_requests -= 1

    def _refuse(self, text: str) -> Overloaded:
        self.num_refused += 1
        return Overloaded(text, self.retry_after_s)


class Reservation:
    """One open request. As a context manager it leaves at the end of the block."""

    __slots__ = ("_admission", "_is_open", "num_tokens")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._is_open = True
        self.num_tokens = 0

    def reserve(self, num_tokens: int, within_s: float | None = None) -> None:
        """Hold so many tokens in all from now on. `within_s` is what is left of the timeout.

        Raises Overloaded when others hold tokens and these do not fit beside them, or when they
        cannot be done in time. The request then holds nothing.
        """
        assert self._is_open
        self._admission._reserve(self, num_tokens, within_s)

    def release(self) -> None:
        """Hold nothing any more: the rows are there, or will never be."""
        self._admission._set(self, 0)

    def leave(self) -> None:
        """Close the request: it is answered. Later calls do nothing."""
        if self._is_open:
            self._is_open = False
            self._admission._leave(self)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()
