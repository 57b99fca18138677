"""Opens a file by a path that nobody but its owner and root can bend.

Whoever may write to a directory on the way can put another file, or a link to one that root owns, in the
place of the file. So the way is walked a step at a time, each from the descriptor of the one before: what
is checked is what is opened, however the path changes meanwhile.
"""

import errno
import os
import shlex
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from box_policy.control.files.owners import is_private_group, is_trusted, is_unmapped, user

_MAX_LINKS: Final = 40
"""Symbolic links on one way, as Linux counts them (path_resolution(7))."""

_STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: to open a FIFO that nobody writes to would take for ever. And no terminal becomes ours.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


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
        UntrustedError: it isn't a regular file; or it, or a directory on the way, is another user's than
            root or the effective one, or can be written to by others or by a group. A group that is its
            owner's alone is no danger; nor is a directory that can't be written to where it is mounted, as a
            Kubernetes ConfigMap's; nor a sticky one, for what is ours in it.
        OSError: of any other failure.
    """
    walk = _Walk(path, trail)
    try:
        return walk.to_the_end()
    finally:
        walk.close()


@dataclass(slots=True)
class _Faults:
    """Why a way can't be trusted. All of it is found before it is said: who mends it does so once."""

    said: list[str] = field(default_factory=list)
    owned: dict[str, None] = field(default_factory=dict)
    """What has to be given to root."""
    writable: dict[str, None] = field(default_factory=dict)
    """What has to be closed to others."""

    def __bool__(self) -> bool:
        return bool(self.said)

    def belongs(self, what: str, path: str, uid: int) -> None:
        if path not in self.owned:
            self.owned[path] = None
            self.said.append(f"{what} belongs to {user(uid)}; it has to be root's or user {os.geteuid()}'s")

    def can_be_written(self, what: str, path: str, mode: int) -> None:
        if path not in self.writable:
            self.writable[path] = None
            who = "others" if mode & stat.S_IWOTH else "its group"
            self.said.append(f"{who} can write to {what}")

    def __str__(self) -> str:
        commands = [
            f"{command} {shlex.join(paths)}"
            for command, paths in (("chown root", self.owned), ("chmod go-w", self.writable))
            if paths
        ]
        return "; ".join(self.said) + (f": {' && '.join(commands)}" if commands else "")


class _Walk:
    def __init__(self, path: Path, trail: Trail) -> None:
        self._path = path
        self._trail = trail
        self._faults = _Faults()
        self._links = 0
        self._fd = -1
        self._at = "/"
        """The directory that is open, by a path without links."""
        self._shared = False
        """Whether others can make entries in it, but not replace ours."""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def to_the_end(self) -> int:
        steps = _steps(os.fspath(self._path))
        self._enter_root()
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

    def _enter_root(self) -> None:
        self._shared = False
        self._enter("/", os.open("/", _STEP | os.O_DIRECTORY))

    def _enter(self, at: str, fd: int) -> None:
        self.close()
        self._fd, self._at = fd, at
        self._check_directory()

    # Not by pathlib: this runs for every file at every poll.

    def _above(self) -> str:
        return self._at.rpartition("/")[0] or "/"

    def _below(self, name: str) -> str:
        return f"/{name}" if self._at == "/" else f"{self._at}/{name}"

    def _open(self, name: str) -> int:
        self._trail.add(self._at, name, os.fstat(self._fd))
        # What strangers may have put there is looked at, but not opened: that can do harm to a device.
        fd = os.open(name, _STEP if self._faults else _READ, dir_fd=self._fd)
        try:
            status = os.fstat(fd)
            if stat.S_ISLNK(status.st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            self._check_file(fd, status)
            if self._faults:
                raise UntrustedError(str(self._faults))
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
            # As fs.protected_symlinks has it: in a sticky directory anybody can make a link.
            if self._shared and not is_trusted(status.st_uid):
                raise UntrustedError(
                    f"the link {self._below(name)}, where anybody can make one, "
                    f"belongs to {user(status.st_uid)}"
                )
            target = os.readlink("", dir_fd=link)
        finally:
            os.close(link)
        if target.startswith("/"):
            self._enter_root()
        return _steps(target)

    def _check_directory(self) -> None:
        """Note why the directory that is open is a danger to what is in it."""
        status = os.fstat(self._fd)
        what = f"the directory {self._at}"
        # In a container on a user's own, the host's directories belong to nobody whom it knows. Where
        # strangers can make directories, one of these may well be a stranger's.
        if not is_trusted(status.st_uid) and (self._shared or not is_unmapped(status.st_uid)):
            self._faults.belongs(what, self._at, status.st_uid)
        self._shared = _is_open_to_others(self._fd, status) and not _is_read_only(self._fd)
        if self._shared and not status.st_mode & stat.S_ISVTX:
            self._faults.can_be_written(what + ", and so replace the file", self._at, status.st_mode)

    def _check_file(self, fd: int, status: os.stat_result) -> None:
        path = os.fspath(self._path)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedError(f"it is {_kind(status.st_mode)}, not a regular file")
        if not is_trusted(status.st_uid):
            self._faults.belongs("it", path, status.st_uid)
        if _is_open_to_others(fd, status):
            self._faults.can_be_written("it", path, status.st_mode)


def _steps(path: str) -> list[str]:
    """A path's parts, the first one last."""
    return [step for step in reversed(path.split("/")) if step not in ("", ".")]


def _is_open_to_others(fd: int, status: os.stat_result) -> bool:
    """Whether anybody but its owner may write to it, by its mode."""
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not (
        is_private_group(status.st_gid, status.st_uid) and not _has_access_list(fd)
    )


def _has_access_list(fd: int) -> bool:
    """Whether there is a POSIX ACL (acl(5)): then the group's bits are those of all whom it names."""
    try:
        # By its name in /proc: a descriptor that is for its place alone has no attributes.
        os.getxattr(f"/proc/self/fd/{fd}", "system.posix_acl_access")
    except OSError as error:
        return error.errno not in (errno.ENODATA, errno.ENOTSUP)
    return True


def _is_read_only(fd: int) -> bool:
    return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)


def _kind(mode: int) -> str:
    kinds: Iterable[tuple[bool, str]] = (
        (stat.S_ISDIR(mode), "a directory"),
        (stat.S_ISFIFO(mode), "a FIFO"),
        (stat.S_ISSOCK(mode), "a socket"),
    )
    return next((kind for matches, kind in kinds if matches), "a device")
