"""When a request must be done: by its own header or by the setting, whichever comes first.

What cannot be done by then is refused (batcher/admission.py); what is not done then is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from api.http.errors import ApiError, BadRequest

HEADER = "x-request-timeout"
MAX_TIMEOUT_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Deadline:
    """`source` is what set it; `ends_at` is the loop's time."""

    timeout_s: float
    source: str
    ends_at: float

    def left_s(self) -> float:
        return self.ends_at - asyncio.get_running_loop().time()


def read_deadline(header: str | None, setting_s: float | None) -> Deadline | None:
    """Counted from now. Raises BadRequest for a header that is no number of seconds."""
    given = []
    if header is not None:
        given.append((_seconds(header), HEADER))
    if setting_s is not None:
        given.append((setting_s, "request_timeout_s"))
    if not given:
        return None
    timeout_s, source = min(given)
    return Deadline(timeout_s, source, asyncio.get_running_loop().time() + timeout_s)


def _seconds(header: str) -> float:
    try:
        seconds = float(header)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT_S or "_" in header:
        shown = header[:40].encode("unicode_escape").decode()
        raise BadRequest(
            f"{HEADER} must be seconds, above 0 and at most {MAX_TIMEOUT_S:.0f}, not '{shown}'"
        )
    return seconds


def too_late(deadline: Deadline, retry_after_s: int) -> ApiError:
    """What a request is told that was given up."""
    message = f"not done within {deadline.timeout_s:g} s ({deadline.source})"
    return ApiError(503, message, {"Retry-After": str(retry_after_s)})


@contextlib.asynccontextmanager
async def given_up_at(ends_at: float, late: Callable[[], ApiError]) -> AsyncIterator[None]:
    """Cancel the body of this block when the loop's time has come; then raise `late()`."""
    loop, worker = asyncio.get_running_loop(), asyncio.current_task()
    assert worker is not None
    has_passed = False

    def give_up() -> None:
        nonlocal has_passed
        has_passed = True
        worker.cancel()

    if ends_at <= loop.time():
        raise late()
    timer = loop.call_at(ends_at, give_up)
    try:
        yield
    except asyncio.CancelledError:
        if has_passed:
            raise late() from None
        raise
    finally:
        timer.cancel()
