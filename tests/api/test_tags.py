"""What /api/tags says of a folder's weight files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api.dialects.ollama_models import tag_of
from engine.folder.recipe import Overrides
from serving.models.catalog import entry_of
from tests.serving.fake_models import write_model


def safetensors(dtype: str, num_values: int) -> bytes:
    tensor = {"dtype": dtype, "shape": [num_values], "data_offsets": [0, 0]}
    header = json.dumps({"weight": tensor}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_tag_names_the_stored_type_and_size_of_the_weights_that_are_read(
    tmp_path: Path, dtype: str
) -> None:
    folder = write_model(tmp_path, "both-forms")
    content = safetensors(dtype, 4_022_000_000)
    (folder.path / "model.safetensors").write_bytes(content)
    (folder.path / "pytorch_model.bin").write_bytes(bytes(1000))
    tag = tag_of(entry_of(folder, Overrides()))
    assert tag is not None
    assert tag["size"] == len(content)
    details = tag["details"]
    assert (details["parameter_size"], details["quantization_level"]) == ("4.0B", dtype)
