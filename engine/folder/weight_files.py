"""Which files of a folder are its weights, and what their headers say of size and type.

The one rule: model.safetensors, else the shards that its index names, else pytorch_model*.bin.
Reads headers, never weights. No torch here.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from engine.errors import ModelError
from engine.folder.sentence_files import read_object

NO_WEIGHTS = "no weights (model.safetensors or pytorch_model.bin)"

_SINGLE = "model.safetensors"
_PICKLE = "pytorch_model.bin"
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
# The types that a pickle's config.json may name, as safetensors names them, and bytes a value.
_DTYPES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
}


def has_weights(folder: Path) -> bool:
    """Whether a file is there that must be weights or their index."""
    names = [name + suffix for name in (_SINGLE, _PICKLE) for suffix in ("", ".index.json")]
    return any((folder / name).is_file() for name in names)


def weight_files(folder: Path) -> list[Path]:
    """The files that loading reads, empty where there are none. Raises ModelError for a bad
    index; a shard that it names may be missing."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index = folder / f"{_SINGLE}.index.json"
    if not index.is_file():
        return sorted(folder.glob("pytorch_model*.bin"))
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{index}: no weight_map")
    return [folder / name for name in sorted({Path(str(name)).name for name in shards.values()})]


def weight_bytes(folder: Path) -> int:
    """Of the files that loading reads, on disk. Raises OSError when one has just gone."""
    return sum(path.stat().st_size for path in weight_files(folder))


def num_values(folder: Path) -> int:
    """How many numbers a model's weights are. Raises ModelError naming the file."""
    files = weight_files(folder)
    if not files:
        raise ModelError(f"{folder}: {NO_WEIGHTS}")
    if files[0].suffix != ".safetensors":
        return weight_bytes(folder) // _pickled_dtype(folder)[1]
    return sum(sum(_values_by_dtype(path).values()) for path in files)


def stored_dtype(folder: Path) -> str:
    """F32, F16, BF16 or another of safetensors' names: the type of most values in the files.

    Pickles are not opened: what config.json says counts. Raises ModelError naming the file.
    """
    counts = _stored_dtypes(folder)
    if counts is None:
        return _pickled_dtype(folder)[0]
    return max(counts, key=lambda dtype: counts[dtype], default="F32")


def lossless_dtype(folder: Path) -> str:
    """A type that holds every stored value exactly: that of all values, or F32 where there are
    several or where only a pickle knows. Raises ModelError naming the file."""
    counts = _stored_dtypes(folder)
    return next(iter(counts)) if counts and len(counts) == 1 else "F32"


def _stored_dtypes(folder: Path) -> Counter[str] | None:
    """How many values there are of each type; None for pickles, which are not opened."""
    files = weight_files(folder)
    if not files or files[0].suffix != ".safetensors":
        return None
    return sum((_values_by_dtype(path) for path in files), Counter())


def _values_by_dtype(path: Path) -> Counter[str]:
    """Of a safetensors file: 8 bytes of length, a JSON header of shapes, then the data."""
    try:
        with path.open("rb") as file:
            num_header_bytes = int.from_bytes(file.read(8), "little")
            if num_header_bytes > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {num_header_bytes} bytes")
            header: dict[str, Any] = json.loads(file.read(num_header_bytes))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        end = 8 + num_header_bytes + max((t["data_offsets"][1] for t in tensors), default=0)
        counts: Counter[str] = Counter()
        for tensor in tensors:
            counts[str(tensor["dtype"])] += int(math.prod(tensor["shape"]))
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except Exception as error:  # a damaged header may break in any way
        raise ModelError(f"{path}: no safetensors file, damaged, or cut short") from error
    if size < end:
        raise ModelError(f"{path}: cut short, {size} of {end} bytes")
    return counts


def _pickled_dtype(folder: Path) -> tuple[str, int]:
    """Its name, and bytes a value; float32 where config.json names none that is known."""
    config = read_object(folder / "config.json", missing_ok=True)
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    return _DTYPES.get(dtype.removeprefix("torch."), _DTYPES["float32"])
