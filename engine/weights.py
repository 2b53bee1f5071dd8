"""Tensors out of a model's folder: safetensors, or pickles read with `weights_only=True`.

Nothing that is read can run code. Must not know families or heads.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from engine.errors import ModelError


def read_state(folder: Path, *names: str) -> dict[str, Tensor]:
    """The first of `names` that is there, as name -> float32 tensor. Raises ModelError."""
    for name in names:
        path = folder / name
        if path.is_file():
            state = _read(path)
            if not all(isinstance(value, Tensor) for value in state.values()):
                raise ModelError(f"{path}: holds more than tensors")
            return {key: value.float() for key, value in state.items()}
    raise ModelError(f"{folder}: none of {', '.join(names)} is there")


def read_rows(folder: Path, name: str, rows: list[int]) -> Tensor | None:
    """float32 `[len(rows), H]` of the matrix `name`, the rest never read; None if it is not there.

    Looks in the folder's safetensors, sharded or not, else in its pickles (memory-mapped).
    """
    file = _file_of(folder, name)
    if file is None:
        return None
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as stored:
                matrix = stored.get_slice(name)
                return torch.stack([matrix[row].float() for row in rows])
        stored_matrix: Tensor = _read(file)[name]
        return stored_matrix[rows].float()
    except (SafetensorError, IndexError) as error:
        raise ModelError(f"{file}: {name}: {error}") from error


def _file_of(folder: Path, name: str) -> Path | None:
    for single in ("model.safetensors", "pytorch_model.bin"):
        path = folder / single
        if path.is_file():
            return path if name in _names(path) else None
        index = folder / f"{single}.index.json"
        if index.is_file():
            shard = json.loads(index.read_text(encoding="utf-8"))["weight_map"].get(name)
            return folder / Path(shard).name if shard else None
    return None


def _names(path: Path) -> set[str]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as stored:
            return set(stored.keys())
    return set(_read(path))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:  # the unpickler raises many kinds, and says what it refused
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"{path}: {reason}") from error
    if not isinstance(state, dict):
        raise ModelError(f"{path}: not a dictionary of tensors")
    return state


def _is_zip(path: Path) -> bool:
    """Files of torch before 1.6 are plain pickles, which cannot be mapped."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
