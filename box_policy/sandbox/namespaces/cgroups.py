"""Control groups for boxes, below the one that this process is in: cgroups(7).

Version 1 has a hierarchy for each controller, or several; there, whoever may write makes a group. Version 2
has one, and a group with processes of its own hands nothing on to groups below it: the processes of ours
move into a leaf first, if they are all the caller's.

Whatever can't be had is left out, and the caller told by which version each limit is held.
"""

# Paths are strings here, as system calls take them.
# ruff: noqa: PTH102, PTH103, PTH106, PTH110, PTH118, PTH119, PTH120, PTH208

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from box_policy.sandbox.namespaces import processes

PREFIX = "box-policy-"
LEAF = PREFIX + "own"
"""Where the caller's processes are, in version 2, so that boxes can have groups beside it."""
ZYGOTE = "box-zygote"
_CONTROLLERS = {"memory": "memory", "pids": "pids", "cpus": "cpu"}
"""The controller of each limit."""
_PERIOD = 100_000
"""Microseconds over which processor time is counted out; the kernel's own default."""


@dataclass(frozen=True, slots=True)
class Place:
    """A group in which groups for boxes can be made."""

    directory: str
    version: int
    limits: frozenset[str]
    """What can be limited there."""


def find_places(cgroups: str, mountinfo: str) -> list[Place]:
    """From the texts of /proc/self/cgroup and /proc/self/mountinfo."""
    mounts = [mount for line in mountinfo.splitlines() if (mount := _mount(line)) is not None]
    places = []
    for line in cgroups.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        names = set(controllers.split(","))
        limits = frozenset(limit for limit, name in _CONTROLLERS.items() if name in names)
        if number == "0" and not controllers:
            version, limits = 2, frozenset(_CONTROLLERS)
        elif limits:
            version = 1
        else:
            continue
        for kind, options, root, point in mounts:
            if kind == ("cgroup2" if version == 2 else "cgroup") and (version == 2 or names <= options):
                directory = _below(path, root, point)
                if directory is not None:
                    places.append(Place(directory, version, limits))
                    break
    return places


def _mount(line: str) -> tuple[str, set[str], str, str] | None:
    head, separator, tail = line.partition(" - ")
    fields, described = head.split(" "), tail.split(" ")
    if not separator or len(fields) < 5 or len(described) < 3:
        return None
    return described[0], set(described[2].split(",")), fields[3], fields[4]


def _below(path: str, root: str, point: str) -> str | None:
    """The directory of the group ``path``, in a hierarchy of which ``root`` is mounted at ``point``."""
    if ".." in path.split("/") or ".." in root.split("/"):
        return None  # it lies above what this cgroup namespace shows
    if root != "/":
        if path != root and not path.startswith(root + "/"):
            return None
        path = path[len(root) :]
    return os.path.normpath(point + "/" + path)


class Cgroups:
    """The groups of one zygote's boxes."""

    def __init__(self, places: Collection[Place]) -> None:
        self._places = [place for place in map(_prepared, places) if place is not None]

    def join(self, name: str, limits: Mapping[str, float]) -> dict[str, int]:
        """Move this process into new groups ``name`` that hold it to ``limits``.

        Returns the cgroup version by limit; without what can't be held.
        """
        held: dict[str, int] = {}
        for place in self._places:
            here = {limit: value for limit, value in limits.items() if limit in place.limits}
            if not here:
                continue
            directory = os.path.join(place.directory, name)
            try:
                os.mkdir(directory)
                applied = [limit for limit, value in here.items() if _apply(directory, place, limit, value)]
                if applied:
                    _write(directory, "cgroup.procs", "0")
                    held |= dict.fromkeys(applied, place.version)
            except OSError:
                pass
            if not held.keys() & here.keys():
                _remove(directory)
        return held

    def remove(self, name: str) -> bool:
        """Remove a box's groups; whether none is left."""
        return sum(not _remove(os.path.join(place.directory, name)) for place in self._places) == 0

    def remove_stale(self) -> None:
        """Remove the groups of zygotes that have ended without doing so."""
        for place in self._places:
            for name in _boxes(place.directory):
                owner = name.removeprefix(PREFIX).partition("-")[0]
                if owner.isdigit() and not _is_zygote(owner):
                    _remove(os.path.join(place.directory, name))

    def close(self) -> None:
        """Leave the groups as they were found, unless other zygotes have boxes there."""
        for place in self._places:
            if place.version == 2 and not _boxes(place.directory):
                _move_back(place.directory)


def group_name(number: int) -> str:
    """The name of the groups of this zygote's box ``number``."""
    return f"{PREFIX}{os.getpid()}-{number}"


def remove_left_by(zygote: int, places: Collection[Place]) -> bool:
    """Remove the groups of a zygote that has ended without doing so; whether none is left."""
    left = 0
    for place in places:
        directory = _above_leaf(place.directory)
        for name in _boxes(directory):
            if name.startswith(f"{PREFIX}{zygote}-"):
                left += not _remove(os.path.join(directory, name))
    return left == 0


def _above_leaf(directory: str) -> str:
    # Moved there by an earlier zygote of this caller's.
    return os.path.dirname(directory) if os.path.basename(directory) == LEAF else directory


def _boxes(directory: str) -> list[str]:
    try:
        return [name for name in os.listdir(directory) if name.startswith(PREFIX) and name != LEAF]
    except OSError:
        return []


def _is_zygote(pid: str) -> bool:
    try:
        text = _read(f"/proc/{pid}", "stat")
    except OSError:
        return False
    process = processes.parse(text.encode())
    # Ended and not reaped yet, it still has its name.
    return process is not None and process.state not in "ZX" and f"({ZYGOTE})" in text


def _remove(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _apply(directory: str, place: Place, limit: str, value: float) -> bool:
    settings = _settings_1(directory, limit, value) if place.version == 1 else _settings_2(limit, value)
    try:
        for name, text in settings:
            _write(directory, name, text)
    except OSError:
        return False
    return True


def _settings_1(directory: str, limit: str, value: float) -> list[tuple[str, str]]:
    if limit == "memory":
        # With swap, where it is counted at all; it may not be less than without.
        with_swap = "memory.memsw.limit_in_bytes"
        counted = os.path.exists(os.path.join(directory, with_swap))
        return [("memory.limit_in_bytes", str(value)), *([(with_swap, str(value))] if counted else [])]
    if limit == "pids":
        return [("pids.max", str(value))]
    return [("cpu.cfs_period_us", str(_PERIOD)), ("cpu.cfs_quota_us", str(int(value * _PERIOD)))]


def _settings_2(limit: str, value: float) -> list[tuple[str, str]]:
    if limit == "memory":
        return [("memory.max", str(value)), ("memory.swap.max", "0")]
    if limit == "pids":
        return [("pids.max", str(value))]
    return [("cpu.max", f"{int(value * _PERIOD)} {_PERIOD}")]


def _prepared(place: Place) -> Place | None:
    """The place to make groups in for what is at ``place``; None if there is none."""
    if place.version == 1:
        return place if os.access(place.directory, os.W_OK) else None
    directory = _above_leaf(place.directory)
    try:
        offered = set(_read(directory, "cgroup.controllers").split())
        limits = frozenset(limit for limit in place.limits if _CONTROLLERS[limit] in offered)
        wanted = {_CONTROLLERS[limit] for limit in limits}
        if not wanted or not os.access(directory, os.W_OK):
            return None
        if not wanted <= set(_read(directory, "cgroup.subtree_control").split()):
            if not _is_all_ours(directory):
                return None
            try:
                os.makedirs(os.path.join(directory, LEAF), exist_ok=True)
                _move(directory, os.path.join(directory, LEAF))
                _write(directory, "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(wanted)))
            except OSError:
                _move_back(directory)
                return None
    except OSError:
        return None
    return Place(directory, 2, limits)


def _is_all_ours(directory: str) -> bool:
    """Whether every process of a group is the caller, who is this process's parent, or comes from it."""
    ours = {os.getppid()}
    parents = {process.pid: process.parent for process in processes.everyone()}
    for member in map(int, _read(directory, "cgroup.procs").split()):
        line = []
        while member not in ours:
            line.append(member)
            member = parents.get(member, 0)
            if member <= 1:
                return False
        ours.update(line)
    return True


def _move(source: str, target: str) -> None:
    for pid in _read(source, "cgroup.procs").split():
        try:
            _write(target, "cgroup.procs", pid)
        except ProcessLookupError:
            continue


def _move_back(directory: str) -> None:
    leaf = os.path.join(directory, LEAF)
    steps: list[Callable[[], object]] = [
        lambda: _write(
            directory, "cgroup.subtree_control", " ".join(f"-{name}" for name in _CONTROLLERS.values())
        ),
        lambda: _move(leaf, directory),
        lambda: os.rmdir(leaf),
    ]
    for step in steps:
        try:
            step()
        except OSError:
            continue


def _read(directory: str, name: str) -> str:
    with open(os.path.join(directory, name)) as file:
        return file.read()


def _write(directory: str, name: str, text: str) -> None:
    fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
