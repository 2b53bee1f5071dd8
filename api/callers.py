"""Who may call, as settings write it: keys and origins, separated by commas."""

from __future__ import annotations

import re

_KEY = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")


def split(names: str | None) -> list[str]:
    """What stands between the commas; empty ones are left out."""
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def check_keys(keys: str) -> None:
    """Raises ValueError, which does not show them."""
    if not split(keys) or not all(_KEY.fullmatch(key) for key in split(keys)):
        raise ValueError("keys are printable ASCII without spaces, separated by commas")


def check_origins(origins: str | None) -> None:
    """Raises ValueError naming the one at fault."""
    for origin in split(origins):
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is no origin such as https://example.com:8443, or *")
