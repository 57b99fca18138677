"""Whole directories of a box's, in the file worker: opened and removed, however deep they are.

No name, depth or kind of file that a box can make stops the work.
"""

# Paths are strings here, as system calls take them.
# ruff: noqa: PTH106, PTH108, PTH116

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_TOLD_PATH = 4096
_ON_THE_WAY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_PORTION = 4000
"""Bytes of a path that one system call is given: less than PATH_MAX (limits.h)."""


class Output:
    """The answer."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.is_begun = False
        """Whether anything of it has been written."""

    def line(self, answer: dict[str, object]) -> None:
        """A line of JSON. ASCII escapes carry names that are not UTF-8 (lone surrogates) unchanged."""
        self.write(json.dumps(answer).encode("ascii") + b"\n")

    def write(self, data: bytes) -> None:
        """Bytes as they are."""
        self.is_begun = True
        write_fully(self._fd, data)


def write_fully(fd: int, data: bytes) -> None:
    """Write all of ``data``: write(2) may take less than it is given."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def named(error: OSError, path: str) -> OSError:
    """The same error, of the whole path, as far as that can be told."""
    return OSError(error.errno, error.strerror, path[:_MAX_TOLD_PATH])


def with_path[**Given, Result](
    path: str, call: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
) -> Result:
    """What ``call`` returns. Its OSError gets the whole path, where the call was given a name alone."""
    try:
        return call(*args, **kwargs)
    except OSError as error:
        raise named(error, path) from None


def closed(fd: int) -> int:
    """Close a descriptor, if it is one; -1, which is none."""
    if fd >= 0:
        os.close(fd)
    return -1


def open_directory(path: str, *, make: bool = False) -> int:
    """A descriptor for the way into a directory (open(2), O_PATH). The path may be longer than PATH_MAX.

    Links on it are followed, as ever: who minds looks at what came of it. ``make`` makes what is missing.
    """
    fd = os.open("/", _ON_THE_WAY)
    for portion in _portions(os.fsencode(path).strip(b"/")):
        above = fd
        try:
            fd = os.open(portion, _ON_THE_WAY, dir_fd=above)
        except FileNotFoundError:
            if not make:
                raise
            fd = _make_directories(portion, above)
        finally:
            os.close(above)
    return fd


def _portions(path: bytes) -> Iterator[bytes]:
    while len(path) > _PORTION:
        end = path.rfind(b"/", 0, _PORTION)
        if end < 0:
            break  # no name is that long, as the kernel will say
        yield path[:end]
        path = path[end:].lstrip(b"/")
    if path:
        yield path


def _make_directories(path: bytes, dir_fd: int) -> int:
    fd = os.dup(dir_fd)
    for name in path.split(b"/"):
        above = fd
        try:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=above)
            fd = os.open(name, _ON_THE_WAY, dir_fd=above)
        finally:
            os.close(above)
    return fd


def remove(path: str, dir_fd: int | None = None) -> None:
    """Remove a directory and all in it; the path may be relative to the directory ``dir_fd``. Links in it
    are removed, never followed.

    Not shutil.rmtree(): it recurses or holds a descriptor for each level, and a tree can be deeper than
    either bears. This walks by the current directory, which nothing else in this process needs.
    """
    _enter(path, dir_fd)
    levels = [(_here(), _unlink_files())]
    while True:
        directories = levels[-1][1]
        if directories:
            try:
                _enter(directories[-1])
            except (FileNotFoundError, NotADirectoryError):
                directories.pop()  # it vanished, or became something else
            else:
                levels.append((_here(), _unlink_files()))
            continue
        levels.pop()
        if not levels:
            break
        os.chdir("..")
        above, directories = levels[-1]
        if _here() != above:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)  # it was moved meanwhile
        with suppress(FileNotFoundError):
            os.rmdir(directories.pop())
    os.chdir("/")
    os.rmdir(path, dir_fd=dir_fd)


def _enter(directory: str, dir_fd: int | None = None) -> None:
    fd = os.open(directory, OPEN_DIRECTORY, dir_fd=dir_fd)
    try:
        os.fchdir(fd)
    finally:
        os.close(fd)


def _here() -> tuple[int, int]:
    status = os.stat(".")
    return status.st_dev, status.st_ino


def _unlink_files() -> list[str]:
    """Remove what is no directory from the current one; return the names of those that are."""
    directories = []
    with os.scandir(".") as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
                continue
            try:
                os.unlink(entry.name)
            except FileNotFoundError:
                continue
    return directories
