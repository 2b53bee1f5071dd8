"""Writes what the container image installs: requirements.txt and constraints.txt in a folder.

Owns one decision: a base image that has its own torch (a vendor's, with a plug-in built for exactly
that version) keeps it. torch is then left out of both files, and with it what torch asks for, so
that no pin of ours can replace it. Must not know Docker; runs before anything is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def main(source: Path, output: Path) -> None:
    keep_torch = importlib.util.find_spec("torch") is not None
    wanted = read_toml(source / "pyproject.toml")["project"]["dependencies"]
    pinned = (source / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if keep_torch:
        print("torch: the base image's own is kept")
        wanted, pinned = without_torch(wanted), without_torch(pinned)
    output.mkdir(parents=True, exist_ok=True)
    (output / "requirements.txt").write_text("\n".join(wanted) + "\n", encoding="utf-8")
    (output / "constraints.txt").write_text("\n".join(pinned) + "\n", encoding="utf-8")


def without_torch(lines: Iterable[str]) -> list[str]:
    """The lines that do not begin with the very name torch: torchvision stays."""
    return [line for line in lines if not re.match(r"torch(?![\w.-])", line, re.IGNORECASE)]


def read_toml(path: Path) -> dict[str, Any]:
    """Python 3.10, which some vendors' images have, reads TOML only through pip's own copy."""
    has_own = sys.version_info >= (3, 11)
    reader = importlib.import_module("tomllib" if has_own else "pip._vendor.tomli")
    document: dict[str, Any] = reader.loads(path.read_text(encoding="utf-8"))
    return document


if __name__ == "__main__":
    main(source=Path(sys.argv[1]), output=Path(sys.argv[2]))
