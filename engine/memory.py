"""Memory: what a model's weights will take, what this machine has left, and how to free it.

Torch is used only where somebody else has imported it. `root` is where /proc and
/sys are looked for, so tests can show any machine. A container's limit counts as well as the
machine's memory: a process that passes it is killed.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.cpus import cgroup_levels, read_text
from engine.folder.weight_files import num_values

OVERHEAD = 1.1  # buffers, the allocator's rounding, a batch's activations
OVERHEAD_BYTES = 64 << 20  # a tokenizer with 250 000 pieces, Python objects

# Where a hierarchy is mounted, its controller, and what its files and their lines are called: v2,
# v2 beside v1 hierarchies (hybrid), v1.
_CGROUPS = (
    ("", "", "memory.max", "memory.current", "", "file_mapped"),
    ("unified", "", "memory.max", "memory.current", "", "file_mapped"),
    ("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_", "mapped_file"),
)


def model_bytes(folder: Path, bytes_per_value: int) -> int:
    """What loading will need, from the weights' headers. Raises ModelError naming the file."""
    return int(num_values(folder) * bytes_per_value * OVERHEAD) + OVERHEAD_BYTES


def available_bytes(root: Path = Path("/")) -> int:
    """The least of the machine's free memory and what every cgroup above this process leaves.

    Where nothing says, as outside Linux, it is sys.maxsize.
    """
    lefts = [*_machine_left(root), *_cgroups_left(root)]
    return max(0, min(lefts, default=sys.maxsize))


def release(device_kind: str = "cpu") -> None:
    """Return freed memory to the system, and to the device's other users."""
    gc.collect()
    device = getattr(sys.modules.get("torch"), device_kind, None)
    if empty_cache := getattr(device, "empty_cache", None):
        empty_cache()
    trim()


def trim() -> None:
    """Return the C heap's free pages to the system: glibc keeps them otherwise."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    malloc_trim(0)


def drop_pages(spans: Iterable[tuple[int, int]], root: Path = Path("/")) -> None:
    """Let go of the pages of mapped files in spans of memory, each an address and bytes.

    They are read again from the file when they are used. Memory that is no file's stays.
    """
    files = []
    for line in read_text(root / "proc/self/maps").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/"):
            start, end = (int(address, 16) for address in fields[0].split("-"))
            files.append((start, end))
    for address, size in spans:
        first, last = -(-address // mmap.PAGESIZE), (address + size) // mmap.PAGESIZE
        start, end = first * mmap.PAGESIZE, last * mmap.PAGESIZE
        if end > start and any(low <= start and end <= high for low, high in files):
            advise = ctypes.CDLL(None).madvise
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def format_bytes(num_bytes: int) -> str:
    """For people: `1.2 GB`, `0.4 GB`, `12.5 MB`, `0.3 kB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size / 10:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def format_count(number: int) -> str:
    """A number of parameters as models are named: `22.7M`, `568M`, `4.0B`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            digits = 0 if number >= 100 * size else 1
            return f"{number / size:.{digits}f}{unit}"
    return str(number)


def _machine_left(root: Path) -> Iterator[int]:
    left = _entries(root / "proc/meminfo").get("MemAvailable:")
    if left is not None:
        yield left * 1024


def _cgroups_left(root: Path) -> Iterator[int]:
    for mount, controller, limit_name, used_name, prefix, mapped in _CGROUPS:
        for folder in cgroup_levels(root, controller, root / "sys/fs/cgroup" / mount):
            limit, used = read_text(folder / limit_name), read_text(folder / used_name)
            if limit.isdecimal() and used.isdecimal():  # no limit reads "max", or 2**63 less a page
                stat = _entries(folder / "memory.stat")
                keys = (f"{prefix}inactive_file", f"{prefix}active_file", f"{prefix}{mapped}")
                yield int(limit) - int(used) + _droppable(stat.get(key, 0) for key in keys)


def _droppable(inactive_active_mapped: Iterable[int]) -> int:
    """Bytes of files that the kernel keeps only until the memory is needed.

    Pages of weights that were mapped twice are "active" and stay so after unloading. Counting them
    as used would refuse the third model because of the first.
    """
    inactive, active, mapped = inactive_active_mapped
    return max(inactive, inactive + active - mapped)


def _entries(path: Path) -> dict[str, int]:
    """Lines of a name and a number, as in memory.stat and meminfo."""
    lines = (line.split() for line in read_text(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
