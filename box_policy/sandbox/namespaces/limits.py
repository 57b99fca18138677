"""A box's bounds: checked, and put into words."""

import math
import os
import re
from collections.abc import Mapping

from box_policy.sandbox.launcher import BoxSpec, Limit, Limits, SandboxError

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_LEAST_MEMORY = 32 << 20  # pid 1 itself takes a few MiB
_LEAST_CPUS = 0.01  # the least that the kernel grants, 1 ms in every 100
_MOST_CPUS = 4096.0
_MOST = 1 << 62
_SHARE_OF_RAM = 4
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def check_host_name(name: str) -> None:
    """SandboxError for a name that no host can have."""
    if _HOSTNAME.fullmatch(name) is None:
        raise SandboxError(f"{name!r} is no host name: letters, digits and hyphens, at most 63")


def request(limits: Limits) -> dict[str, int | float]:
    """Those that are set, as the zygote is told. SandboxError for one that no box could live with."""
    memory, pids, cpus = limits.memory_bytes, limits.pids, limits.cpus
    if memory is not None and not _LEAST_MEMORY <= memory < _MOST:
        raise SandboxError(f"a box can't live with {memory} bytes of memory: at least {_LEAST_MEMORY}")
    if pids is not None and not 1 <= pids < _MOST:
        raise SandboxError(f"a box can't live with {pids} processes: at least 1")
    if cpus is not None and not (math.isfinite(cpus) and _LEAST_CPUS <= cpus <= _MOST_CPUS):
        raise SandboxError(f"a box can't live with {cpus} processors: at least {_LEAST_CPUS}")
    given = {"memory": memory, "pids": pids, "cpus": cpus}
    return {name: value for name, value in given.items() if value is not None}


def scratch_bytes(wanted: int, memory: float | None) -> int:
    """The size of a box's own directories, which lie in its memory: full, they leave programs some of it.

    If nothing bounds its ``memory``, it is the host's, and they have the fourth part of that at most.
    """
    return min(wanted, _ram() // _SHARE_OF_RAM if memory is None else int(memory) - int(memory) // 4)


def _ram() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def describe(spec: BoxSpec, cgroups: Mapping[str, int]) -> dict[Limit, str]:
    """What holds, and by which means. ``cgroups`` has the cgroup version by the name of the limit."""
    limits = spec.limits
    words: dict[Limit, str] = {}
    if limits.memory_bytes is not None and "memory" in cgroups:
        words["memory"] = f"{in_units(limits.memory_bytes)}, cgroup v{int(cgroups['memory'])}"
    if limits.pids is not None:
        by_cgroup = f"cgroup v{int(cgroups['pids'])} and " if "pids" in cgroups else ""
        words["pids"] = f"{limits.pids}, {by_cgroup}rlimit"
    if limits.cpus is not None and "cpus" in cgroups:
        words["cpus"] = f"{limits.cpus:g}, cgroup v{int(cgroups['cpus'])}"
    memory = limits.memory_bytes if "memory" in words else None
    beside = "" if spec.workdir is None else " beside /workspace"
    size = scratch_bytes(spec.scratch_bytes, memory)
    why = ", a quarter of the host's memory" if memory is None and size < spec.scratch_bytes else ""
    words["disk"] = f"{in_units(size)}, size of a tmpfs{beside}{why}"
    return words


def in_units(count: int) -> str:
    """A number of bytes, for people."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
