"""The server's own version, as installed."""

from __future__ import annotations

import functools
from importlib import metadata


@functools.cache
def server_version() -> str:
    """`0.0.0` when run from a copied folder that was never installed."""
    try:
        return metadata.version("embedding-server")
    except metadata.PackageNotFoundError:
        return "0.0.0"
