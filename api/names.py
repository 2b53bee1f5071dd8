"""Which model a request means: names are compared as text and never opened as paths."""

from __future__ import annotations


def same_model(asked: str, name: str) -> bool:
    """Whether `asked` (a name, `name:latest`, a hub id, a path's last segment) is `name`."""
    last = asked.rstrip("/").rpartition("/")[2]
    return last.removesuffix(":latest").casefold() == name.casefold()
