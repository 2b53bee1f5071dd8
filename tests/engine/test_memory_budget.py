"""What weights take, by files written here; what is left, by machines and containers as folders."""

from __future__ import annotations

import ctypes
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine import memory
from engine.errors import ModelError
from engine.memory import (
    OVERHEAD,
    OVERHEAD_BYTES,
    available_bytes,
    format_bytes,
    format_count,
    model_bytes,
)
from tests.engine.test_cpus import V2, Files, membership, write

V1 = "sys/fs/cgroup/memory"
MEMINFO: Files = {
    "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB\nHugePages_Total:       0\n"
}
FREE = 5000 * 1024


def with_overhead(num_bytes: int) -> int:
    return int(num_bytes * OVERHEAD) + OVERHEAD_BYTES


def safetensors(*shapes: list[int]) -> bytes:
    """A file of 2-byte numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for i, shape in enumerate(shapes):
        start, end = end, end + 2 * math.prod(shape)
        header[f"w{i}"] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


SHARDS = {"x": "one.safetensors", "y": "two.safetensors", "z": "one.safetensors"}
INDEX = json.dumps({"weight_map": SHARDS})


@pytest.mark.parametrize(
    ("files", "bytes_per_value", "expected"),
    [
        pytest.param({"model.safetensors": safetensors([3, 4], [5], [])}, 4, 18 * 4, id="one file"),
        pytest.param({"model.safetensors": safetensors([3, 4])}, 2, 12 * 2, id="as half"),
        pytest.param({"model.safetensors": safetensors()}, 4, 0, id="no tensors"),
        pytest.param(
            {
                "model.safetensors.index.json": INDEX,
                "one.safetensors": safetensors([10]),
                "two.safetensors": safetensors([7]),
            },
            4,
            17 * 4,
            id="shards",
        ),
        pytest.param(
            {"model.safetensors": safetensors([3]), "model.safetensors.index.json": INDEX},
            4,
            3 * 4,
            id="one file before shards",
        ),
        pytest.param(
            {"model.safetensors": safetensors([3]), "pytorch_model.bin": bytes(1000)},
            4,
            3 * 4,
            id="safetensors before a pickle",
        ),
        pytest.param({"pytorch_model.bin": bytes(400)}, 4, 400, id="a pickle"),
        pytest.param(
            {"pytorch_model.bin": bytes(400), "config.json": '{"torch_dtype": "float16"}'},
            4,
            800,
            id="a pickle of halves",
        ),
        pytest.param(
            {
                "pytorch_model-00001-of-00002.bin": bytes(400),
                "pytorch_model-00002-of-00002.bin": bytes(100),
                "config.json": '{"dtype": "torch.bfloat16"}',
            },
            2,
            500,
            id="pickled shards",
        ),
        pytest.param(
            {"pytorch_model.bin": bytes(400), "config.json": '{"dtype": "odd"}'},
            2,
            200,
            id="a pickle of a type unheard of",
        ),
    ],
)
def test_weights_are_counted_without_being_read(
    files: Files, bytes_per_value: int, expected: int, tmp_path: Path
) -> None:
    write(tmp_path, files)
    assert model_bytes(tmp_path, bytes_per_value) == with_overhead(expected)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no weights"),
        ({"model.safetensors": b""}, "model.safetensors: no safetensors file, damaged"),
        ({"model.safetensors": b"\x10"}, "model.safetensors: no safetensors file, damaged"),
        ({"model.safetensors": safetensors([3])[:20]}, "damaged, or cut short"),
        ({"model.safetensors": safetensors([3])[:-1]}, r"model.safetensors: cut short, \d+ of \d+"),
        ({"model.safetensors": b"version https://git-lfs.github.com/spec/v1"}, "no safetensors"),
        ({"model.safetensors": (2).to_bytes(8, "little") + b"[]"}, "damaged"),
        ({"model.safetensors": (8).to_bytes(8, "little") + b'{"w": 1}'}, "damaged"),
        ({"model.safetensors.index.json": "{"}, "index.json"),
        ({"model.safetensors.index.json": "[]"}, "index.json: not a JSON object"),
        ({"model.safetensors.index.json": "{}"}, "index.json: no weight_map"),
        ({"model.safetensors.index.json": INDEX}, "one.safetensors: No such file"),
        ({"pytorch_model.bin": b"", "config.json": "nothing"}, "config.json"),
    ],
)
def test_torn_weights_are_refused_by_name(files: Files, words: str, tmp_path: Path) -> None:
    write(tmp_path, files)
    with pytest.raises(ModelError, match=words) as raised:
        model_bytes(tmp_path, 4)
    assert str(raised.value).startswith(str(tmp_path))


def v2(folder: str, limit: int | str, current: int, stat: str = "") -> Files:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{current}\n",
        f"{folder}/memory.stat": stat,
    }


def v1(folder: str, limit: int, usage: int, stat: str = "") -> Files:
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{usage}\n",
        f"{folder}/memory.stat": stat,
    }


LEFT: list[tuple[str, Files, int]] = [
    ("nothing says", {}, sys.maxsize),
    ("no cgroup", MEMINFO, FREE),
    ("v2 without limit", {**MEMINFO, **v2(V2, "max", 700)}, FREE),
    ("v2, a limit above what is free", {**MEMINFO, **v2(V2, 10**12, 700)}, FREE),
    ("v2 container", {**MEMINFO, **membership("0::/"), **v2(V2, 1000, 700)}, 300),
    ("v2, files that are cached", v2(V2, 1000, 700, "anon 9\ninactive_file 200\n"), 500),
    (
        "v2, files that were used twice and are not mapped any more",
        v2(V2, 1000, 700, "inactive_file 100\nactive_file 400\nfile_mapped 50\n"),
        750,
    ),
    (
        "v2, files that are mapped",
        v2(V2, 1000, 700, "inactive_file 100\nactive_file 400\nfile_mapped 450\n"),
        400,
    ),
    (
        "v2, the smallest of several levels",
        {
            **membership("0::/pods/main"),
            **v2(f"{V2}/pods", 1000, 900),
            **v2(f"{V2}/pods/main", 1000, 500),
            **v2(f"{V2}/pods/other", 1000, 1000),
        },
        100,
    ),
    ("v2, more used than allowed", v2(V2, 1000, 1200), 0),
    ("v2, the usage is not shown", {**MEMINFO, f"{V2}/memory.max": "1000\n"}, FREE),
    ("v2, noise", {**MEMINFO, **v2(V2, "\xb2", 7, "inactive_file\n\x00 x\n")}, FREE),
    ("hybrid", {**membership("0::/a"), **v2(f"{V2}/unified/a", 1000, 700)}, 300),
    ("v1 without limit", {**MEMINFO, **v1(V1, 9223372036854771712, 700)}, FREE),
    (
        "v1 container with the host's paths",
        {**membership("7:memory:/docker/4f2a"), **v1(V1, 1000, 700, "total_inactive_file 200\n")},
        500,
    ),
    (
        "v1, the limit on a parent",
        {
            **membership("7:memory:/a/b"),
            **v1(f"{V1}/a", 1000, 400, "total_inactive_file 0\ntotal_active_file 100\n"),
            **v1(f"{V1}/a/b", 9223372036854771712, 400),
        },
        700,
    ),
]


@pytest.mark.parametrize(
    ("files", "left"), [pytest.param(files, left, id=name) for name, files, left in LEFT]
)
def test_what_is_left_is_the_least_that_machine_and_cgroups_leave(
    files: Files, left: int, tmp_path: Path
) -> None:
    write(tmp_path, files)
    assert available_bytes(tmp_path) == left


def test_this_machine_has_memory() -> None:
    assert available_bytes() > 0


def test_freed_memory_goes_back_to_the_system_and_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    library = SimpleNamespace(malloc_trim=lambda pad: calls.append(f"trim {pad}"))
    device = SimpleNamespace(empty_cache=lambda: calls.append("empty"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(memory.gc, "collect", lambda: calls.append("collect"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(vacc=device))
    memory.release("vacc")
    assert calls == ["collect", "empty", "trim 0"]


def test_releasing_needs_neither_torch_nor_this_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    memory.release("cuda")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    memory.release()
    assert "torch" not in sys.modules


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [
        (1_240_000_000, "1.2 GB"),
        (400_000_000, "0.4 GB"),
        (12_500_000, "12.5 MB"),
        (100_000, "0.1 MB"),
        (300, "0.3 kB"),
        (0, "0.0 kB"),
        (123_456_000_000, "123.5 GB"),
    ],
)
def test_bytes_read_as_people_say_them(num_bytes: int, words: str) -> None:
    assert format_bytes(num_bytes) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"),
        (999, "999"),
        (1_234, "1.2k"),
        (22_713_216, "22.7M"),
        (567_754_752, "568M"),
        (4_021_774_336, "4.0B"),
        (123_456_000_000, "123B"),
    ],
)
def test_parameters_are_counted_as_models_are_named(number: int, words: str) -> None:
    assert format_count(number) == words


def test_pages_of_mapped_files_are_dropped_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    content = bytes(range(256)) * 4096
    path.write_bytes(content)
    mapped = torch.from_file(str(path), size=len(content), dtype=torch.uint8)
    own = mapped.clone()
    before = _resident_kb(path)
    assert before > 900
    spans = [(each.data_ptr(), each.nbytes) for each in (mapped, own)]
    memory.drop_pages(spans)
    assert _resident_kb(path) < before / 10
    assert bytes(mapped.numpy()) == content
    assert bytes(own.numpy()) == content  # memory that is no file's stays as it is


def test_nothing_is_dropped_where_nothing_says_what_is_mapped(tmp_path: Path) -> None:
    own = torch.ones(1 << 20)
    memory.drop_pages([(own.data_ptr(), own.nbytes)], root=tmp_path)
    assert own.min() == 1


def _resident_kb(path: Path) -> int:
    """Of this process's mapping of the file."""
    found, total = False, 0
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            found = line.endswith(str(path))
        elif found and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total
