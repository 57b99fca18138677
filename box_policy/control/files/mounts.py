"""Where a file really is: on which mount, which file system, and where in that."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo, proc_pid_mountinfo(5)."""

    device: str
    """The file system's major and minor number."""
    root: str
    """What of the file system is shown, as a path in it."""
    point: str
    """Where it is shown."""
    filesystem: str
    """The file system's type."""


def mounts() -> dict[int, Mount]:
    """What is mounted where this process can see it, by the mount's id. Raises OSError."""
    found: dict[int, Mount] = {}
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            about, _, filesystem = line.partition(" - ")
            number, _, device, root, point = about.split()[:5]
            found[int(number)] = Mount(device, _plain(root), _plain(point), filesystem.split()[0])
    return found


def mount_of(fd: int) -> Mount | None:
    """The mount by which a file was opened; None if that can't be told.

    By the mount's id: statfs(2) isn't to be had from Python, and st_dev differs from the file system's number
    on btrfs.
    """
    try:
        for line in Path(f"/proc/thread-self/fdinfo/{fd}").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "mnt_id":
                return mounts().get(int(value))
    except (OSError, ValueError):
        pass
    return None


def _plain(escaped: str) -> str:
    """Blanks, tabs, line ends and backslashes are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), escaped)
