"""The one rule for which files are the weights, and the type that their headers name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.errors import ModelError
from engine.folder.weight_files import num_values, stored_dtype, weight_bytes, weight_files
from tests.engine.conftest import write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
PICKLES = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
OTHERS = ["adapter.safetensors", "optimizer.bin", "config.json"]


def lay(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).write_bytes(bytes(10**number))


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ([], []),
        (OTHERS, []),
        ([SINGLE, *OTHERS], [SINGLE]),
        ([SINGLE, INDEX, *SHARDS, *PICKLES], [SINGLE]),
        ([INDEX, *SHARDS, *PICKLES, *OTHERS], SHARDS),
        ([*SHARDS, *PICKLES], PICKLES),  # no index says that the shards belong together
        (["pytorch_model.bin", *OTHERS], ["pytorch_model.bin"]),
    ],
)
def test_weights_lie_in_one_form_only(tmp_path: Path, names: list[str], wanted: list[str]) -> None:
    lay(tmp_path, *names)
    if INDEX in names:
        write_json(tmp_path / INDEX, {"weight_map": {"a": SHARDS[1], "b": SHARDS[0]}})
    assert [path.name for path in weight_files(tmp_path)] == wanted
    sizes = [(tmp_path / name).stat().st_size for name in wanted]
    assert weight_bytes(tmp_path) == sum(sizes)


def test_an_index_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    write_json(tmp_path / INDEX, {"weight_map": {"a": "../../a.safetensors"}})
    assert weight_files(tmp_path) == [tmp_path / "a.safetensors"]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "F32"), (torch.float16, "F16"), (torch.bfloat16, "BF16")],
)
def test_the_stored_type_is_that_of_most_values(
    tmp_path: Path, dtype: torch.dtype, name: str
) -> None:
    few = torch.zeros(3, dtype=torch.float32 if name != "F32" else torch.float16)
    save_file({"many": torch.zeros(8, 8, dtype=dtype), "few": few}, tmp_path / SINGLE)
    write_json(tmp_path / "config.json", {"torch_dtype": "float64"})
    assert (stored_dtype(tmp_path), num_values(tmp_path)) == (name, 67)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"torch_dtype": "float16"}, "F16"),
        ({"dtype": "torch.bfloat16"}, "BF16"),
        ({"dtype": "odd"}, "F32"),
        ({}, "F32"),
    ],
)
def test_the_type_of_pickles_is_what_the_config_says(
    tmp_path: Path, config: dict[str, str], name: str
) -> None:
    lay(tmp_path, "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stored_dtype(tmp_path) == name


def test_a_damaged_header_has_no_type(tmp_path: Path) -> None:
    lay(tmp_path, SINGLE)
    with pytest.raises(ModelError, match=r"model\.safetensors: no safetensors file"):
        stored_dtype(tmp_path)
