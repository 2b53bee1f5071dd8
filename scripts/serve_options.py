"""Prints what serve.sh must know of the settings: host, port, and whether a model is there.

Reads the environment and .env exactly as the server will; a bad setting ends with its message.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.errors import ModelError
from engine.store import find_model
from settings import BadSetting, read_settings


def main() -> None:
    try:
        settings = read_settings()
    except BadSetting as error:
        sys.exit(f"cannot start: {error}")
    try:
        find_model(settings.model, settings.models_dir)
        missing = "no"
    except ModelError as error:
        if settings.model is not None:
            sys.exit(f"cannot start: {error}")
        missing = "yes"
    print(settings.host, settings.port, missing)


if __name__ == "__main__":
    main()
