"""Durations as Ollama and Go write them. Must not know settings or HTTP."""

from __future__ import annotations

import math
import re
from typing import Any

_DURATION_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "\u00b5s": 1e-6,  # micro sign
    "\u03bcs": 1e-6,  # Greek mu
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_MAX_DURATION_CHARS = 100  # matching is quadratic in the length


def parse_keep_alive(value: Any) -> float | None:
    """Seconds or a Go duration ("1h30m") -> seconds; negative means for ever; None stays None.

    Source: Go's time.ParseDuration, which Ollama uses. Raises ValueError.
    """
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if not isinstance(value, str) or len(value) > _MAX_DURATION_CHARS:
        raise ValueError("must be seconds or a duration such as 5m")
    sign, text = (-1.0, value[1:]) if value.startswith("-") else (1.0, value.removeprefix("+"))
    parts = _DURATION_PART.findall(text)
    if text == "0":
        return 0.0
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("must be seconds or a duration such as 5m, 1h30m or -1s")
    return sign * sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
