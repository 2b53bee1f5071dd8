"""Memory: what a model's weights will take, what this machine has left, and giving freed back.

Standard library only; torch is used where somebody else has imported it. `root` is where /proc and
/sys are looked for, so tests can show any machine. A container's limit counts as well as the
machine's memory: whoever passes it is killed.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.cpus import cgroup_levels, read_text
from engine.errors import ModelError
from engine.sentence_files import read_object

OVERHEAD = 1.1  # buffers, the allocator's rounding, a step's activations
OVERHEAD_BYTES = 64 << 20  # a tokenizer with 250 000 pieces, Python objects

_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_BYTES_PER_VALUE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def model_bytes(folder: Path, bytes_per_value: int) -> int:
    """What loading will need, from the weights' headers. Raises ModelError naming the file."""
    return int(num_values(folder) * bytes_per_value * OVERHEAD) + OVERHEAD_BYTES


def num_values(folder: Path) -> int:
    """How many numbers a model's weights are. Raises ModelError naming the file."""
    shards = _safetensors(folder)
    if shards:
        return sum(_count_values(path) for path in shards)
    return _pickled_bytes(folder) // _stored_bytes_per_value(folder)


def available_bytes(root: Path = Path("/")) -> int:
    """The least of the machine's free memory and what every cgroup above this process leaves.

    Where nothing says, as outside Linux: as if without end.
    """
    lefts = [*_machine_left(root), *_lefts_v2(root), *_lefts_v1(root)]
    return max(0, min(lefts, default=sys.maxsize))


def release(device_kind: str = "cpu") -> None:
    """Give what was freed back to the system, and to the device's other users."""
    gc.collect()
    device = getattr(sys.modules.get("torch"), device_kind, None)
    if empty_cache := getattr(device, "empty_cache", None):
        empty_cache()
    try:
        trim = ctypes.CDLL(None).malloc_trim  # glibc keeps freed pages otherwise
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    trim(0)


def format_bytes(num_bytes: int) -> str:
    """As people say it: `1.2 GB`, `0.4 GB`, `12.5 MB`, `0.3 kB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size / 10:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def _safetensors(folder: Path) -> list[Path]:
    """One file, or the shards that the index names; empty when there are neither."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        return []
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{index}: no weight_map")
    return [folder / name for name in sorted({str(name) for name in shards.values()})]


def _count_values(path: Path) -> int:
    """Numbers in a safetensors file: 8 bytes of length, a JSON header of shapes, then the data."""
    try:
        with path.open("rb") as file:
            num_header_bytes = int.from_bytes(file.read(8), "little")
            if num_header_bytes > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {num_header_bytes} bytes")
            header = json.loads(file.read(num_header_bytes))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        end = 8 + num_header_bytes + max((t["data_offsets"][1] for t in tensors), default=0)
        num_values = sum(int(math.prod(tensor["shape"])) for tensor in tensors)
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except Exception as error:  # what a damaged header is may be anything
        raise ModelError(f"{path}: no safetensors file, damaged, or cut short") from error
    if size < end:
        raise ModelError(f"{path}: cut short, {size} of {end} bytes")
    return num_values


def _pickled_bytes(folder: Path) -> int:
    sizes = [path.stat().st_size for path in folder.glob("pytorch_model*.bin")]
    if not sizes:
        raise ModelError(
            f"{folder}: no weights: no model.safetensors, no index of it, no pytorch_model*.bin"
        )
    return sum(sizes)


def _stored_bytes_per_value(folder: Path) -> int:
    path = folder / "config.json"
    config = read_object(path, missing_ok=True)
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    return _BYTES_PER_VALUE.get(dtype.removeprefix("torch."), 4)


def _machine_left(root: Path) -> Iterator[int]:
    left = _entries(root / "proc/meminfo").get("MemAvailable:")
    if left is not None:
        yield left * 1024


def _lefts_v2(root: Path) -> Iterator[int]:
    for mount in ("", "unified"):  # unified: beside v1 hierarchies (hybrid)
        for folder in cgroup_levels(root, "", root / "sys/fs/cgroup" / mount):
            limit, used = read_text(folder / "memory.max"), read_text(folder / "memory.current")
            if limit.isdecimal() and used.isdecimal():  # no limit reads "max"
                stat = _entries(folder / "memory.stat")
                keys = ("inactive_file", "active_file", "file_mapped")
                yield int(limit) - int(used) + _droppable(stat.get(key, 0) for key in keys)


def _lefts_v1(root: Path) -> Iterator[int]:
    for folder in cgroup_levels(root, "memory", root / "sys/fs/cgroup/memory"):
        limit, used = (read_text(folder / f"memory.{k}_in_bytes") for k in ("limit", "usage"))
        if limit.isdecimal() and used.isdecimal():  # no limit reads 2**63 less a page
            stat = _entries(folder / "memory.stat")
            keys = ("total_inactive_file", "total_active_file", "total_mapped_file")
            yield int(limit) - int(used) + _droppable(stat.get(key, 0) for key in keys)


def _droppable(inactive_active_mapped: Iterable[int]) -> int:
    """Bytes of files that the kernel keeps only until somebody needs the memory.

    The pages of weights that were mapped twice are "active" and stay so after the unloading; to
    count them as used would refuse the third model for the sake of the first.
    """
    inactive, active, mapped = inactive_active_mapped
    return max(inactive, inactive + active - mapped)


def _entries(path: Path) -> dict[str, int]:
    """Lines of a name and a number, as in memory.stat and meminfo."""
    lines = (line.split() for line in read_text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
