"""Who may come in: how many jobs are open, how many tokens they hold, and when one would be done.

It knows no clock, queue or HTTP: durations are told, so its policy is tested by tables.
A job enters before anything of it is read, holds its tokens from when they are counted until its
rows are there, and leaves when it is answered. Only the rate is told from another thread.
Invariant: neither limit is ever exceeded, but by the tokens of one job that alone holds any.
"""

from __future__ import annotations

import math
import threading
from types import TracebackType

MAX_RETRY_S = 600
_UNMEASURED_RETRY_S = 5
_HALF_LIFE_S = 10.0  # of computing: a minute's work tells the rate, an hour's past does not


class Overloaded(Exception):
    """The job is not taken, nothing of it: the text names setting, limit and what is there."""

    def __init__(self, text: str, retry_after_s: int) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Rate:
    """Tokens a second, of late. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = self._seconds = 0.0

    def count(self, num_tokens: int, seconds: float) -> None:
        """A step has run."""
        with self._lock:
            kept = 0.5 ** (seconds / _HALF_LIFE_S)
            self._tokens = self._tokens * kept + num_tokens
            self._seconds = self._seconds * kept + seconds

    def doubt(self) -> None:
        """Somebody was refused by it whom nothing else would have kept waiting: assume twice as
        much next time. Short texts alone, or a machine that was busy, tell less than it can do,
        and who is always refused never shows it."""
        with self._lock:
            self._seconds /= 2

    def seconds_for(self, num_tokens: int) -> float | None:
        """None while nothing is measured."""
        with self._lock:
            if not self._tokens:
                return None
            return num_tokens * self._seconds / self._tokens


class Admission:
    """`max_jobs` are open at a time, from their first byte on, and hold `max_tokens` together.

    Jobs of at most `max_urgent_tokens` may overtake all others.
    """

    def __init__(
        self, max_tokens: int, max_jobs: int, rate: Rate, max_urgent_tokens: int = 0
    ) -> None:
        self._max_tokens, self._max_jobs = max_tokens, max_jobs
        self._max_urgent_tokens = max_urgent_tokens
        self._rate = rate
        self.num_jobs = 0
        self.num_holding = 0  # those whose tokens are counted
        self.num_tokens = 0
        self._num_urgent_tokens = 0  # those of jobs that may overtake
        self.num_refused = 0

    @property
    def retry_after_s(self) -> int:
        """When what is held now will be done, at the measured rate; 1 to MAX_RETRY_S."""
        seconds = self._rate.seconds_for(self.num_tokens)
        if seconds is None:
            return _UNMEASURED_RETRY_S
        return max(1, math.ceil(min(seconds, MAX_RETRY_S)))

    def enter(self) -> Place:
        """Raises Overloaded when no job, or not a single token, would be taken."""
        if self.num_jobs >= self._max_jobs:
            raise self._refuse(
                f"the queue is full: {self.num_jobs} requests are open, "
                f"the limit is {self._max_jobs} (max_queue_requests)"
            )
        if self.num_tokens >= self._max_tokens:
            raise self._refuse(
                f"the queue is full: it holds {self.num_tokens} tokens, "
                f"the limit is {self._max_tokens} (max_queue_tokens)"
            )
        self.num_jobs += 1
        return Place(self)

    def _hold(self, place: Place, num_tokens: int, within_s: float | None) -> None:
        grows = num_tokens > place.num_tokens
        self._set(place, 0)
        is_too_much = self.num_tokens + num_tokens > self._max_tokens
        if grows and self.num_tokens and is_too_much:
            raise self._refuse(
                f"the queue is full: it holds {self.num_tokens} tokens and this request has "
                f"{num_tokens} or more, the limit is {self._max_tokens} (max_queue_tokens)"
            )
        if within_s is not None:
            self._check_in_time(num_tokens, within_s)
        self._set(place, num_tokens)

    def _check_in_time(self, own: int, within_s: float) -> None:
        """A job's share is one of as many as hold tokens: at the earliest it is done when all is,
        or when each has had as much as it needs itself, or, if it may overtake, when those are done
        that may as well."""
        ahead = min(self.num_tokens + own, own * (self.num_holding + 1))
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

    def _set(self, place: Place, num_tokens: int) -> None:
        self.num_tokens += num_tokens - place.num_tokens
        self._num_urgent_tokens += self._urgent(num_tokens) - self._urgent(place.num_tokens)
        self.num_holding += bool(num_tokens) - bool(place.num_tokens)
        place.num_tokens = num_tokens

    def _urgent(self, num_tokens: int) -> int:
        return num_tokens if num_tokens <= self._max_urgent_tokens else 0

    def _leave(self, place: Place) -> None:
        self._set(place, 0)
        self.num_jobs -= 1

    def _refuse(self, text: str) -> Overloaded:
        self.num_refused += 1
        return Overloaded(text, self.retry_after_s)


class Place:
    """One open job's. As a context manager it leaves at the end of the block."""

    __slots__ = ("_admission", "_is_open", "num_tokens")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._is_open = True
        self.num_tokens = 0

    def hold(self, num_tokens: int, within_s: float | None = None) -> None:
        """From now on so many tokens, in all. `within_s`: what is left of the job's timeout.

        Raises Overloaded when they are more than the limit leaves and others hold any, or cannot
        be done within that time: then it holds nothing.
        """
        assert self._is_open
        self._admission._hold(self, num_tokens, within_s)

    def release(self) -> None:
        """Its rows are there, or will never be: it holds nothing."""
        self._admission._set(self, 0)

    def leave(self) -> None:
        """It is answered. Twice is harmless."""
        if self._is_open:
            self._is_open = False
            self._admission._leave(self)

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.leave()
