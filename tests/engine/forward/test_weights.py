"""Tensors from every kind of file in a model's folder; nothing that is read runs code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import ModelError
from engine.forward.heads import read_rows, read_state
from tests.engine.conftest import write_json

NAME = "lm_head.weight"
MATRIX = torch.arange(60, dtype=torch.float32).reshape(20, 3)
OTHER = {"model.norm.weight": torch.ones(3)}


def one_safetensors(folder: Path, state: dict[str, Tensor]) -> None:
    save_file(state, folder / "model.safetensors")


def one_pickle(folder: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, folder / "pytorch_model.bin")


def one_plain_pickle(folder: Path, state: dict[str, Tensor]) -> None:
    """As torch before 1.6 wrote them: no zip file, so it cannot be mapped."""
    path = folder / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=False)


def shards(folder: Path, state: dict[str, Tensor], stem: str, suffix: str, save: Any) -> None:
    where = {}
    for i, (name, tensor) in enumerate(state.items()):
        where[name] = f"{stem}-{i}{suffix}"
        save({name: tensor}, folder / where[name])
    write_json(folder / f"{stem}{suffix}.index.json", {"metadata": {}, "weight_map": where})


def sharded_safetensors(folder: Path, state: dict[str, Tensor]) -> None:
    shards(folder, state, "model", ".safetensors", save_file)


def sharded_pickles(folder: Path, state: dict[str, Tensor]) -> None:
    shards(folder, state, "pytorch_model", ".bin", torch.save)


STORAGES = [
    one_safetensors,
    one_pickle,
    one_plain_pickle,
    sharded_safetensors,
    sharded_pickles,
]
Save = Callable[[Path, dict[str, Tensor]], None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("save", STORAGES)
def test_rows_are_read_from_every_kind_of_file(
    tmp_path: Path, save: Save, dtype: torch.dtype
) -> None:
    save(tmp_path, {**OTHER, NAME: MATRIX.to(dtype)})
    rows = read_rows(tmp_path, NAME, [17, 2])
    assert rows is not None
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, MATRIX[[17, 2]], atol=0, rtol=0)


@pytest.mark.parametrize("save", STORAGES)
def test_a_matrix_that_no_file_has_is_none(tmp_path: Path, save: Save) -> None:
    save(tmp_path, OTHER)
    assert read_rows(tmp_path, NAME, [0]) is None


def test_a_folder_without_weights_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path, NAME, [0]) is None


@pytest.mark.parametrize("save", STORAGES)
def test_a_row_that_is_not_there_is_refused(tmp_path: Path, save: Save) -> None:
    save(tmp_path, {NAME: MATRIX})
    with pytest.raises(ModelError, match=NAME):
        read_rows(tmp_path, NAME, [20])


def test_an_index_cannot_point_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({NAME: MATRIX + 100}, tmp_path / "a.safetensors")
    save_file({NAME: MATRIX}, folder / "a.safetensors")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {NAME: "../a.safetensors"}})
    rows = read_rows(folder, NAME, [1])
    assert rows is not None
    torch.testing.assert_close(rows, MATRIX[[1]], atol=0, rtol=0)


@pytest.mark.parametrize("save", [one_safetensors, one_pickle, one_plain_pickle])
def test_a_state_is_float32_by_name(tmp_path: Path, save: Save) -> None:
    save(tmp_path, {"weight": MATRIX.half()})
    state = read_state(tmp_path, "model.safetensors", "pytorch_model.bin")
    assert state["weight"].dtype == torch.float32
    torch.testing.assert_close(state["weight"], MATRIX, atol=0, rtol=0)


def test_the_first_name_that_is_there_is_read(tmp_path: Path) -> None:
    one_pickle(tmp_path, {"weight": MATRIX})
    one_safetensors(tmp_path, {"weight": MATRIX + 1})
    state = read_state(tmp_path, "model.safetensors", "pytorch_model.bin")
    assert state["weight"][0, 0] == 1


def test_a_state_that_is_not_there_is_refused_with_the_names(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none of a\.bin, b\.bin is there"):
        read_state(tmp_path, "a.bin", "b.bin")


@pytest.mark.parametrize(
    ("value", "says"),
    [([torch.ones(1)], "not a dictionary"), ({"a": 1}, "more than tensors")],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, value: Any, says: str) -> None:
    torch.save(value, tmp_path / "head.pt")
    with pytest.raises(ModelError, match=rf"head\.pt: .*{says}"):
        read_state(tmp_path, "head.pt")


@pytest.mark.parametrize("name", ["head.pt", "head.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no tensors", b"PK\x03\x04", b"\x80\x02"])
def test_a_torn_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=name):
        read_state(tmp_path, name)


def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    (tmp_path / "head.pt").write_bytes(pickle.dumps({"weight": Payload()}, protocol=2))
    with pytest.raises(ModelError, match=r"head\.pt"):
        read_state(tmp_path, "head.pt")
    assert not (tmp_path / "ran").exists()
