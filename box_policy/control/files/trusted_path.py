"""Opens a file by a path that nobody but its owner and root can bend.

Whoever may write to a directory on the way can put another file, or a link to one that root owns, in the
place of the file. So the way is walked a step at a time, each from the descriptor of the one before: what
is checked is what is opened, however the path changes meanwhile.
"""

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

_MAX_LINKS: Final = 40
"""Symbolic links on one way, as Linux counts them (path_resolution(7))."""

_STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: to open a FIFO that nobody writes to would take for ever. And no terminal becomes ours.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

_ALL_IDS: Final = 2**32 - 1


class UntrustedError(Exception):
    """Somebody else could have written what the path leads to. The message says how to mend that."""


@dataclass(slots=True)
class Trail:
    """What a path leads over: a change to any of it can change what is found at its end."""

    entries: set[tuple[str, str]] = field(default_factory=set)
    """Directory and name, of each symbolic link and of the file itself. Directories without links."""
    directories: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The directories of these entries, with their device and inode."""

    def add(self, directory: str, name: str, identity: os.stat_result) -> None:
        self.entries.add((directory, name))
        self.directories[directory] = (identity.st_dev, identity.st_ino)


def open_trusted(path: Path, trail: Trail) -> int:
    """Open a regular file for reading, symbolic links followed. Returns the descriptor.

    Args:
        path: absolute.
        trail: what was walked over is added, also when this raises.

    Raises:
        UntrustedError: it isn't a regular file; it is another user's than root or the effective one; others
            or its group can write to it, or to a directory that holds it or a link to it, or others to a
            directory above. A directory that can't be written to where it is mounted is no danger, as a
            Kubernetes ConfigMap's; nor is a sticky one, for what is ours in it.
        OSError: of any other failure.
    """
    walk = _Walk(trail)
    try:
        fd = walk.to_the_end(_steps(os.fspath(path)))
    finally:
        walk.close()
    try:
        _check_file(path, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


class _Walk:
    def __init__(self, trail: Trail) -> None:
        self._trail = trail
        self._links = 0
        self._fd = -1
        self._at = "/"
        """The directory that is open, by a path without links."""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def to_the_end(self, steps: list[str]) -> int:
        self._enter("/", os.open("/", _STEP | os.O_DIRECTORY))
        while steps:
            name = steps.pop()
            try:
                if not steps and name != "..":
                    return self._open(name)
                fd = os.open(name, _STEP | os.O_DIRECTORY, dir_fd=self._fd)
            except OSError as error:
                # The one says that a file to read is a link, the other that a directory to enter may be.
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                steps += self._follow(name)
            else:
                self._enter(self._above() if name == ".." else self._below(name), fd)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    def _enter(self, at: str, fd: int) -> None:
        self.close()
        self._fd, self._at = fd, at
        self._check_directory(stat.S_IWOTH)

    # Not by pathlib: this runs for every file at every poll.

    def _above(self) -> str:
        return self._at.rpartition("/")[0] or "/"

    def _below(self, name: str) -> str:
        return f"/{name}" if self._at == "/" else f"{self._at}/{name}"

    def _open(self, name: str) -> int:
        self._trail.add(self._at, name, os.fstat(self._fd))
        fd = os.open(name, _READ, dir_fd=self._fd)
        try:
            self._check_directory(stat.S_IWGRP | stat.S_IWOTH)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _follow(self, name: str) -> list[str]:
        self._trail.add(self._at, name, os.fstat(self._fd))
        self._links += 1
        if self._links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        link = os.open(name, _STEP, dir_fd=self._fd)
        try:
            status = os.fstat(link)
            if not stat.S_ISLNK(status.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            shared = self._check_directory(stat.S_IWGRP | stat.S_IWOTH)
            # As fs.protected_symlinks has it: in a sticky directory anybody can make a link.
            if shared and not _is_trusted(status.st_uid):
                raise UntrustedError(
                    f"the link {self._below(name)}, where anybody can make one, "
                    f"belongs to {_user(status.st_uid)}"
                )
            target = os.readlink("", dir_fd=link)
        finally:
            os.close(link)
        if target.startswith("/"):
            self._enter("/", os.open("/", _STEP | os.O_DIRECTORY))
        return _steps(target)

    def _check_directory(self, strangers: int) -> bool:
        """Whether strangers may write to the directory that is open.

        Raises UntrustedError if it isn't sticky: then they can replace what isn't theirs.
        """
        mode = os.fstat(self._fd).st_mode
        if not mode & strangers or os.fstatvfs(self._fd).f_flag & os.ST_RDONLY:
            return False
        if not mode & stat.S_ISVTX:
            who = "others" if mode & stat.S_IWOTH else "its group"
            raise UntrustedError(
                f"{who} can write to the directory {self._at}, and so replace the file: chmod go-w {self._at}"
            )
        return True


def _steps(path: str) -> list[str]:
    """A path's parts, the first one last."""
    return [step for step in reversed(path.split("/")) if step not in ("", ".")]


def _check_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedError(f"it is {_kind(status.st_mode)}, not a regular file")
    if not _is_trusted(status.st_uid):
        raise UntrustedError(
            f"it belongs to {_user(status.st_uid)}; it has to be root's or user {os.geteuid()}'s"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        who = "others" if status.st_mode & stat.S_IWOTH else "its group"
        raise UntrustedError(f"{who} can write to it: chmod go-w {path}")


def _kind(mode: int) -> str:
    kinds: Iterable[tuple[bool, str]] = (
        (stat.S_ISDIR(mode), "a directory"),
        (stat.S_ISFIFO(mode), "a FIFO"),
        (stat.S_ISSOCK(mode), "a socket"),
    )
    return next((kind for matches, kind in kinds if matches), "a device")


def _is_trusted(uid: int) -> bool:
    return uid in (0, os.geteuid()) and not _is_unmapped(uid)


def _user(uid: int) -> str:
    if _is_unmapped(uid):
        return f"user {uid}, (every user that this user namespace doesn't map)"
    return f"user {uid}"


def _is_unmapped(uid: int) -> bool:
    """Whether the id is the one that a user namespace shows for owners that it doesn't map
    (user_namespaces(7)): anybody's."""
    if uid != _overflow_uid():
        return False
    try:
        ranges = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
        return sum(int(count) for _, _, count in ranges) < _ALL_IDS
    except (OSError, ValueError):
        return True


@cache
def _overflow_uid() -> int:
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return 65534  # the kernel's default
