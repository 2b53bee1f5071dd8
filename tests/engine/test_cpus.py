"""Whole machines and containers as folders: how many threads a process there should use."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import cpus
from engine.cpus import cgroup_quota, count_cpus, has_instructions, usable_cpus

Files = dict[str, str | bytes]

V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/cpu,cpuacct"


def write(root: Path, files: Files) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def v1(folder: str, quota: int, period: int = 100_000) -> Files:
    return {
        f"{folder}/cpu.cfs_quota_us": f"{quota}\n",
        f"{folder}/cpu.cfs_period_us": f"{period}\n",
    }


def membership(*lines: str) -> Files:
    return {"proc/self/cgroup": "\n".join(lines) + "\n"}


def topology(*cores: str) -> Files:
    """One core a string of its hyperthreads, as the kernel writes it: `0,4` or `0-1`."""
    files: Files = {}
    for siblings in cores:
        for cpu in siblings.replace("-", ",").split(","):
            path = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
            files[path] = siblings + "\n"
    return files


# What the host's /proc/self/cgroup says in a v1 container that has no cgroup namespace: the paths
# are the host's, and below the container's own mount there is nothing of that name.
DOCKER_V1 = membership("7:memory:/docker/4f2a", "4:cpu,cpuacct:/docker/4f2a", "0::/docker/4f2a")

QUOTAS: list[tuple[str, Files, float | None]] = [
    ("nothing at all", {}, None),
    ("v2 container", {**membership("0::/"), f"{V2}/cpu.max": "200000 100000\n"}, 2),
    ("v2 container, other period", {f"{V2}/cpu.max": "75000 50000\n"}, 1.5),
    ("v2 without limit", {**membership("0::/"), f"{V2}/cpu.max": "max 100000\n"}, None),
    (
        "v2, systemd service with a limit",
        {
            **membership("0::/system.slice/embedding.service"),
            f"{V2}/system.slice/embedding.service/cpu.max": "400000 100000\n",
            f"{V2}/system.slice/cpu.max": "max 100000\n",
        },
        4,
    ),
    (
        "v2, the limit on a parent",
        {
            **membership("0::/kubepods/pod7/main"),
            f"{V2}/kubepods/pod7/cpu.max": "300000 100000\n",
            f"{V2}/kubepods/pod7/main/cpu.max": "max 100000\n",
        },
        3,
    ),
    (
        "v2, the smallest of several levels",
        {
            **membership("0::/a/b"),
            f"{V2}/a/cpu.max": "200000 100000\n",
            f"{V2}/a/b/cpu.max": "800000 100000\n",
        },
        2,
    ),
    (
        "v2, the limit of another group",
        {**membership("0::/a"), f"{V2}/b/cpu.max": "100000 100000\n"},
        None,
    ),
    (
        "v2, a name that is not ASCII",
        {**membership("0::/büro"), f"{V2}/büro/cpu.max": "100000 100000\n"},
        1,
    ),
    (
        "v2, a name with a colon",
        {**membership("0::/a:b"), f"{V2}/a:b/cpu.max": "100000 100000\n"},
        1,
    ),
    ("v1, docker with the host's paths", {**DOCKER_V1, **v1(V1, 200_000)}, 2),
    (
        "v1, cpu alone",
        {**membership("4:cpu:/a"), **v1("sys/fs/cgroup/cpu/a", 150_000)},
        1.5,
    ),
    (
        "v1, cpuacct,cpu",
        {**membership("4:cpuacct,cpu:/a"), **v1("sys/fs/cgroup/cpuacct,cpu/a", 50_000)},
        0.5,
    ),
    (
        "v1, the limit on a parent",
        {**membership("4:cpu,cpuacct:/a/b"), **v1(f"{V1}/a", 200_000), **v1(f"{V1}/a/b", -1)},
        2,
    ),
    ("v1 without limit", {**membership("4:cpu,cpuacct:/"), **v1(V1, -1)}, None),
    (
        "v1, only cpuset is not cpu",
        {**membership("4:cpuset:/a"), **v1("sys/fs/cgroup/cpu/a", 100_000)},
        None,
    ),
    (
        "hybrid, the limit in v1",
        {
            **membership("4:cpu,cpuacct:/user", "1:name=systemd:/user/s", "0::/user/s"),
            **v1(f"{V1}/user", 250_000),
            f"{V2}/unified/user/s/cgroup.procs": "1\n",
        },
        2.5,
    ),
    (
        "hybrid, the limit in v2",
        {**membership("0::/user"), f"{V2}/unified/user/cpu.max": "100000 100000\n"},
        1,
    ),
    ("an empty cpu.max", {f"{V2}/cpu.max": ""}, None),
    ("a cpu.max of noise", {f"{V2}/cpu.max": b"\xff\xfe \xc2\xb2"}, None),
    ("a quota without a period", {f"{V2}/cpu.max": "200000"}, None),
    ("a period of zero", {f"{V2}/cpu.max": "200000 0"}, None),
    ("v1, half of the files", {f"{V1}/cpu.cfs_quota_us": "200000"}, None),
    (
        "a membership of noise",
        {"proc/self/cgroup": b"\x00\xff\n::\n4\n", f"{V2}/cpu.max": "200000 100000"},
        2,
    ),
    ("folders where files should be", {f"{V2}/cpu.max/x": "", "proc/self/cgroup/x": ""}, None),
]


@pytest.mark.parametrize(
    ("files", "quota"), [pytest.param(files, quota, id=name) for name, files, quota in QUOTAS]
)
def test_the_quota_is_the_smallest_limit_above_this_process(
    files: Files, quota: float | None, tmp_path: Path
) -> None:
    write(tmp_path, files)
    assert cgroup_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("usable", "files", "expected"),
    [
        pytest.param(range(64), {f"{V2}/cpu.max": "200000 100000"}, 2, id="2 CPUs of a large host"),
        pytest.param(range(64), {**DOCKER_V1, **v1(V1, 200_000)}, 2, id="the same in v1"),
        pytest.param(range(64), {f"{V2}/cpu.max": "max 100000"}, 64, id="no limit"),
        pytest.param(range(64), {f"{V2}/cpu.max": "210000 100000"}, 3, id="a fraction rounds up"),
        pytest.param(range(64), {f"{V2}/cpu.max": "20000 100000"}, 1, id="a fraction of one"),
        pytest.param(range(64), {f"{V2}/cpu.max": "0 100000"}, 1, id="at least one"),
        pytest.param([3, 9], {f"{V2}/cpu.max": "800000 100000"}, 2, id="affinity below the quota"),
        pytest.param(range(8), topology("0,4", "1,5", "2,6", "3,7"), 4, id="hyperthreads"),
        pytest.param(range(4), topology("0-1", "2-3"), 2, id="hyperthreads side by side"),
        pytest.param([0, 4, 1], topology("0,4", "1,5"), 2, id="one hyperthread of a core"),
        pytest.param(range(4), topology("0", "1", "2", "3"), 4, id="no hyperthreads"),
        pytest.param(
            range(8),
            {**topology("0,4", "1,5", "2,6", "3,7"), f"{V2}/cpu.max": "600000 100000"},
            4,
            id="a quota above the cores",
        ),
        pytest.param(range(6), {}, 6, id="no topology is shown"),
        pytest.param(range(4), topology("0-1"), 3, id="half of the topology is shown"),
    ],
)
def test_threads_follow_cores_affinity_and_quota(
    usable: range | list[int],
    files: Files,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path, files)
    monkeypatch.setattr(cpus, "usable_cpus", lambda: set(usable))
    assert count_cpus(tmp_path) == expected


def test_affinity_is_asked_for_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {1, 5}, raising=False)
    assert usable_cpus() == {1, 5}


@pytest.mark.parametrize(("num_cpus", "expected"), [(3, {0, 1, 2}), (None, {0})])
def test_without_affinity_all_cpus_are_usable(
    num_cpus: int | None, expected: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: num_cpus)
    assert usable_cpus() == expected


def test_this_machine_has_a_cpu() -> None:
    assert 1 <= count_cpus() <= len(usable_cpus())


def test_instructions_are_found_by_whole_names(tmp_path: Path) -> None:
    assert not has_instructions("amx_bf16", tmp_path)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("model name\t: X\nflags\t\t: fpu amx_bf16\n\n")
    assert has_instructions("amx_bf16", tmp_path)
    assert has_instructions("fpu", tmp_path)
    assert not has_instructions("amx", tmp_path)
