"""The control groups that boxes of namespaces have left, because what makes them was killed."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from box_policy.control.files.mounts import mounts
from box_policy.sandbox.namespaces.cgroups import PREFIX, ZYGOTE

_NAME: Final = re.compile(rf"{PREFIX}([1-9][0-9]{{0,9}})-[0-9]+", re.ASCII)
_SETTLED: Final = 60.0
"""Seconds after which a group has its processes, or never gets any. Its maker can be out of sight: in a
container, by whose numbers the group is named."""


def left_groups() -> list[Path]:
    """Those of this machine that nobody is in, and that nobody will join. OSError if it can't be told."""
    points = dict.fromkeys(
        mount.point for mount in mounts().values() if mount.filesystem in ("cgroup", "cgroup2")
    )
    return [group for point in points for group in _below(Path(point)) if _is_left(group)]


def _below(directory: Path) -> Iterator[Path]:
    for at, names, _ in os.walk(directory):
        for name in names:
            if _NAME.fullmatch(name):
                yield Path(at, name)
        # Boxes make no groups of their own.
        names[:] = [name for name in names if not _NAME.fullmatch(name)]


def _is_left(group: Path) -> bool:
    maker = _NAME.fullmatch(group.name)
    try:
        if (group / "cgroup.procs").read_text().strip() or time.time() - group.stat().st_mtime < _SETTLED:
            return False
        return maker is not None and Path(f"/proc/{maker[1]}/comm").read_text() != f"{ZYGOTE}\n"
    except FileNotFoundError:
        return group.is_dir()  # else it was removed meanwhile
    except OSError:
        return False
