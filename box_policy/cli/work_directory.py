"""The directory that a box may write to, and what must not be in it."""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from box_policy.cli.errors import USAGE, fail
from box_policy.control.files.mounts import mount_of, mounts

_MAX_LINKS: Final = 40
"""Symbolic links on one way that the kernel follows (path_resolution(7))."""


def work_directory(directory: str | None, not_in_it: Mapping[str, Path | None]) -> Path | None:
    """The directory, if it is one to give away: none of the files of these options can be changed from it.

    Ends the program with a message if it isn't.
    """
    if directory is None:
        return None
    if not directory:
        fail("--workdir: an empty name (an unset variable?)", USAGE)
    real = Path(directory).resolve()
    if real == Path("/"):
        fail("--workdir /: the box would have the whole host; name a directory in it", USAGE)
    for option, path in not_in_it.items():
        if path is None:
            continue
        try:
            problem = _problem(path, real)
        except OSError as error:
            problem = error.strerror or str(error)
        if problem is not None:
            fail(f"{option} {path}: {problem}", USAGE)
    return real


def control_socket(address: str | None) -> Path | None:
    """The file that a control address names, if it names one."""
    path = (address or "").removeprefix("unix:")
    return Path(path) if path.startswith("/") else None


def _problem(path: Path, directory: Path) -> str | None:
    """How the box could change what a path leads to, if this were its work directory."""
    hops = list(_hops(path))
    if any(directory in hop.parents for hop in hops) or _is_shown_below(directory, hops):
        return "in the work directory the box could change it, or put its own there"
    if path.is_file() and path.stat().st_nlink > 1:
        return "it has a second name (a hard link), and that may be in the work directory"
    return None


def _is_shown_below(directory: Path, hops: Sequence[Path]) -> bool:
    """Whether what is elsewhere by its name is in a directory nevertheless, by a bind mount of either.

    A place is told by its file system and the path in that, which are the same whatever it is mounted on. To
    compare inodes wouldn't do: both may be mounts of directories that only lie in one another.
    """
    shown = [_place(directory)] if directory.exists() else []
    for mount in mounts().values():
        if directory in Path(mount.point).parents:
            shown.append((mount.device, Path(mount.root)))
    places = [_place(hop) for hop in hops]
    # A directory on the way may itself be one that is shown, unless what follows is in it; the file may not.
    return any(
        device == place[0] and (root in place[1].parents or (root == place[1] and place is places[-1]))
        for device, root in shown
        for place in places
    )


def _hops(path: Path) -> Iterator[Path]:
    """Every name on the way to a file, in a directory without links: whoever can change one of them decides
    what the file is."""
    at, links = Path("/"), 0
    steps = deque(path.absolute().parts[1:])
    while steps:
        step = steps.popleft()
        if step == "..":
            at = at.parent
            continue
        hop = at / step
        yield hop
        if not hop.is_symlink():
            at = hop
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError("too many symbolic links")
        target = hop.readlink()
        if target.is_absolute():
            at = Path("/")
        steps.extendleft(reversed([part for part in target.parts if part != "/"]))


def _place(path: Path) -> tuple[str, Path]:
    """The file system that a path without links is on, and where in it. What isn't there yet will be where
    its directory is."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        device, parent = _place(path.parent)
        return device, parent / path.name
    try:
        mount = mount_of(fd)
    finally:
        os.close(fd)
    if mount is None or not path.is_relative_to(mount.point):
        raise OSError("it can't be told which file system it is on")
    return mount.device, Path(mount.root) / path.relative_to(mount.point)
