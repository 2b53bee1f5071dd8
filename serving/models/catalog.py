"""Which models there are: pinned ones, and every folder below MODELS_DIR, fit to be served or not.

Looks at the disk whenever it is asked, so that a folder that comes or goes needs no restart. Names
are compared as text and never opened as paths. Must not know which models are in memory.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelError
from engine.folder.recipe import Overrides, Recipe, read_recipe
from engine.folder.store import ModelFolder, find_by_name, list_models


@dataclass(frozen=True, slots=True)
class Entry:
    """A folder with its recipe, or with the reason why it cannot be served."""

    folder: ModelFolder
    recipe: Recipe | None
    reason: str = ""


class Catalog:
    """`pinned` are served whatever the folder holds; the first is the default."""

    def __init__(self, models_dir: Path, pinned: list[ModelFolder], overrides: Overrides) -> None:
        assert pinned
        self.pinned = pinned
        self._models_dir = models_dir
        self._overrides = overrides

    @property
    def default(self) -> ModelFolder:
        return self.pinned[0]

    def find_pinned(self, asked: str) -> ModelFolder | None:
        """`asked` may be a name, `name:latest`, a hub id, or a path that ends in the name."""
        return find_by_name(_name_of(asked), self.pinned)

    def find(self, asked: str) -> ModelFolder | None:
        """The same among all folders. Blocking: looks at the disk."""
        name = _name_of(asked)
        return find_by_name(name, self.folders()) if name else None

    def folders(self) -> list[ModelFolder]:
        """Pinned ones first; a folder below MODELS_DIR that has a pinned one's name is hidden."""
        names = {folder.name for folder in self.pinned}
        try:
            below = list_models(self._models_dir)
        except ModelError:  # it was there at start: what is pinned goes on
            below = []
        return [*self.pinned, *(folder for folder in below if folder.name not in names)]

    def entries(self) -> list[Entry]:
        """Blocking: reads each folder's JSON files."""
        return [self.entry(folder) for folder in self.folders()]

    def entry(self, folder: ModelFolder) -> Entry:
        """Blocking too."""
        return entry_of(folder, self._overrides)

    def default_reranker(self, failed: Collection[str]) -> ModelFolder:
        """For a request to rerank that names no model: the first reranker, pinned ones before
        others, else the default, which then compares vectors. Those whose load `failed` are passed
        over. Blocking."""
        rerankers = (
            entry.folder
            for folder in self.folders()
            if folder.name not in failed
            and (entry := self.entry(folder)).recipe is not None
            and entry.recipe.is_reranker
        )
        return next(rerankers, self.default)


def _name_of(asked: str) -> str:
    return asked.rstrip("/").rpartition("/")[2].removesuffix(":latest")


def entry_of(folder: ModelFolder, overrides: Overrides) -> Entry:
    """Blocking: reads the folder's JSON files."""
    try:
        return Entry(folder, read_recipe(folder.path, overrides))
    except ModelError as error:
        reason = str(error).removeprefix(f"{folder.path}: ").replace(str(folder.path), folder.name)
        return Entry(folder, None, reason)
