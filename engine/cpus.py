"""How many CPUs this process may really use: affinity, physical cores and the cgroup's quota.

Standard library only. `root` is where /proc and /sys are looked for, so tests can show any machine.
A container limited to 2 CPUs on a host with 64 must use 2 threads: 64 would be throttled at every
barrier.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def count_cpus(root: Path = Path("/")) -> int:
    """The smaller of usable physical cores and the quota (rounded up), at least 1."""
    cores = _count_cores(usable_cpus(), root)
    quota = cgroup_quota(root)
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def has_instructions(name: str, root: Path = Path("/")) -> bool:
    """Whether the processor says that it has them, by Linux' name: "amx_bf16". False elsewhere."""
    return f" {name} " in f" {read_text(root / 'proc/cpuinfo')} ".replace("\n", " ")


def usable_cpus() -> set[int]:
    """CPU numbers that the scheduler may run this process on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _count_cores(cpus: Iterable[int], root: Path) -> int:
    """Hyperthreads of one core count once: they share its multipliers."""
    siblings = set()
    for cpu in cpus:
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        siblings.add(read_text(path) or str(cpu))
    return len(siblings)


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the cgroup (v2 or v1, any level above this process) allows; None when unlimited."""
    limits = [*_quotas_v2(root), *_quotas_v1(root)]
    return min(limits) if limits else None


def _quotas_v2(root: Path) -> Iterator[float]:
    for mount in ("", "unified"):  # unified: beside v1 hierarchies (hybrid)
        for folder in cgroup_levels(root, "", root / "sys/fs/cgroup" / mount):
            quota, _, period = read_text(folder / "cpu.max").partition(" ")
            if quota.isdecimal() and period.isdecimal() and int(period):  # no limit reads "max"
                yield int(quota) / int(period)


def _quotas_v1(root: Path) -> Iterator[float]:
    for mount in ("cpu", "cpu,cpuacct", "cpuacct,cpu"):
        for folder in cgroup_levels(root, "cpu", root / "sys/fs/cgroup" / mount):
            quota, period = (read_text(folder / f"cpu.cfs_{k}_us") for k in ("quota", "period"))
            if quota.isdecimal() and period.isdecimal() and int(period):  # no limit reads -1
                yield int(quota) / int(period)


def cgroup_levels(root: Path, controller: str, mount: Path) -> Iterator[Path]:
    """This process's folder of one hierarchy and every one above it, up to the mount.

    The v2 hierarchy's line names no controller: `0::/path`. In a container the mount itself is this
    process's folder; the path is then `/`, or (v1) the host's, which is not there and is harmless.
    """
    yield mount
    for line in read_text(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controller in controllers.split(","):
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for depth in range(1, len(parts) + 1):
                yield mount.joinpath(*parts[:depth])


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""
