"""Prints what serve.sh must know of the settings: host, port, and whether a model is there.

Reads the environment and .env exactly as the server will; a bad setting ends with its message.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.errors import ModelError
from engine.folder.store import default_models, find_models, list_models
from serving.configuration import BadSetting, read_settings


def _missing(models_dir: Path) -> str:
    """ "yes" when the folder is empty and no stand-in is installed either."""
    try:
        default_models(models_dir)
    except ModelError:
        if list_models(models_dir):
            raise
        return "yes"
    return "no"


def main() -> None:
    try:
        settings = read_settings()
    except BadSetting as error:
        sys.exit(f"cannot start: {error}")
    missing = "no"
    try:
        if settings.models:
            find_models(settings.models, settings.models_dir)
        else:
            missing = _missing(settings.models_dir)
    except ModelError as error:
        sys.exit(f"cannot start: {error}")
    print(settings.host, settings.port, missing)


if __name__ == "__main__":
    main()
