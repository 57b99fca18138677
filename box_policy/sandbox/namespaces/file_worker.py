"""One operation on a box's files, done by a process of the box.

The process is a child of the box's pid 1 that has become a program of the box in all but exec(2): what it
can reach is what any program of the box can. It takes the operation from its start request, content from
descriptor 0 and answers on descriptor 1: a line of JSON, ``{"ok": result}`` or ``{"errno": n, "path": p}``,
and after it, for some, raw bytes. An error past the first line is told by the exit status, an errno.

Nothing is imported here at run time: after pivot_root() the standard library is out of reach.
"""

# Paths are strings here, as system calls take them.
# ruff: noqa: PTH102, PTH103, PTH104, PTH108, PTH116, PTH120

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from box_policy.sandbox.namespaces import file_archive, file_restore, file_trees, syscalls
from box_policy.sandbox.namespaces.file_trees import Output, write_fully
from box_policy.sandbox.namespaces.plain_tar import BLOCK

PIECE = 256 * 1024
"""Bytes read or written in one go."""
FRAME_HEAD = 4
"""Content comes in frames: the length in this many bytes, big-endian, and so many bytes. One of length 0
ends it; an end without one means that the sender gave up."""
FAILED = 255
"""Exit status if not even an errno says what went wrong."""
_OPEN_FOR_READING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW_FILE_MODE = 0o666  # less the umask

type Operation = Callable[..., None]


def run(request: dict[str, Any]) -> NoReturn:
    """Do what ``request`` asks for, and end."""
    status = FAILED
    output = Output(1)
    try:
        syscalls.set_process_name("box-files")
        arguments = dict(request)
        OPERATIONS[arguments.pop("op")](output, **arguments)
        status = 0
    except OSError as error:
        number = error.errno or errno.EIO
        if output.is_begun:
            status = number
        else:
            path = error.filename if isinstance(error.filename, str) else ""
            output.line({"errno": number, "path": path})
            status = 0
    finally:
        os._exit(status if 0 <= status <= FAILED else FAILED)


class Content:
    """What arrives on a descriptor, in frames. OSError EPIPE if it ends before the frame that ends it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._left = 0
        self._ended = False
        self.tail = b""
        """The last bytes read."""

    def read(self, size: int) -> bytes:
        """As many bytes, or fewer at the end."""
        parts = []
        while size > 0 and not self._ended:
            if self._left == 0:
                self._left = int.from_bytes(self._exactly(FRAME_HEAD))
                self._ended = self._left == 0
                continue
            part = self._some(min(size, self._left))
            self._left -= len(part)
            size -= len(part)
            parts.append(part)
        data = b"".join(parts)
        self.tail = (self.tail + data)[-2 * BLOCK :]
        return data

    def pieces(self) -> Iterator[bytes]:
        """All of it."""
        while piece := self.read(PIECE):
            yield piece

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self._some(size - len(data))
        return data

    def _some(self, size: int) -> bytes:
        data = os.read(self._fd, size)
        if not data:
            raise OSError(errno.EPIPE, os.strerror(errno.EPIPE))
        return data


def _named(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _open_regular(path: str) -> int:
    # Looked at first: to open a FIFO or a device, even without waiting, is felt at its other side.
    _check_regular(os.stat(path), path)
    fd = os.open(path, _OPEN_FOR_READING)
    _check_regular(os.fstat(fd), path)
    return fd


def _check_regular(status: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise _named(errno.EISDIR, path)
    if not stat.S_ISREG(status.st_mode):
        raise _named(errno.EINVAL, path)


def read(output: Output, path: str, offset: int, length: int | None, limit: int) -> None:
    """``length`` bytes from ``offset`` on, or all; EFBIG past ``limit``."""
    fd = _open_regular(path)
    if length is None and os.fstat(fd).st_size - offset > limit:
        raise _named(errno.EFBIG, path)
    if offset:
        os.lseek(fd, offset, os.SEEK_SET)
    output.line({"ok": None})
    left = limit + 1 if length is None else min(length, limit + 1)
    passed = 0
    while left and (piece := os.read(fd, min(PIECE, left))):
        left -= len(piece)
        passed += len(piece)
        # The size was no bound: the file grew, or is one of /proc.
        if passed > limit:
            raise _named(errno.EFBIG, path)
        output.write(piece)


def stream(output: Output, path: str) -> None:
    """All that a file holds."""
    fd = _open_regular(path)
    output.line({"ok": None})
    while piece := os.read(fd, PIECE):
        output.write(piece)


def write(output: Output, path: str) -> None:
    """Make or replace a file."""
    before = _status_behind_links(path)
    if before is not None:
        _check_regular(before, path)
    if path.endswith("/"):
        raise _named(errno.EISDIR, path)
    target = os.path.realpath(path)
    directory = os.path.dirname(target)
    os.makedirs(directory, exist_ok=True)
    replace(directory, target, before, Content(0))
    output.line({"ok": None})


def _status_behind_links(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def replace(directory: str, target: str, before: os.stat_result | None, content: Content) -> None:
    """Put a file with ``content`` at ``target``, in ``directory``, once all of it has arrived."""
    temporary = f"{directory}/.{os.urandom(12).hex()}.part"
    fd, has_name = _new_file(directory, temporary)
    try:
        for piece in content.pieces():
            write_fully(fd, piece)
        if before is not None:
            _keep_rights(fd, before)
        if not has_name:
            # By linkat(2) with AT_SYMLINK_FOLLOW, which Python uses only if given a directory.
            os.link(f"/proc/self/fd/{fd}", temporary, src_dir_fd=fd, follow_symlinks=True)
            has_name = True
        os.rename(temporary, target)
    except BaseException:
        if has_name:
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def _new_file(directory: str, name: str) -> tuple[int, bool]:
    """An empty file; whether it has the ``name``. One without is gone if this process is killed."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, _NEW_FILE_MODE), False
    except OSError as error:
        # Not every file system has files without a name (open(2): EOPNOTSUPP, or as old ones say, EISDIR).
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    return os.open(name, flags, _NEW_FILE_MODE), True


def _keep_rights(fd: int, before: os.stat_result) -> None:
    try:
        os.fchown(fd, before.st_uid, before.st_gid)
    except OSError:
        pass  # an owner that the box doesn't have
    os.fchmod(fd, before.st_mode & 0o777)


def list_directory(output: Output, path: str, limit: int) -> None:
    """A line for each entry; EFBIG past ``limit``."""
    entries: list[list[str | int | float]] = []
    with os.scandir(path) as found:
        for entry in found:
            if len(entries) == limit:
                raise _named(errno.EFBIG, path)
            try:
                entries.append([entry.name, *_facts(entry.stat(follow_symlinks=False))])
            except FileNotFoundError:
                continue  # removed meanwhile
    output.line({"ok": len(entries)})
    for shown in entries:
        output.write(json.dumps(shown).encode("ascii") + b"\n")


def file_status(output: Output, path: str, follow: bool) -> None:
    """Type, size, time and inode."""
    output.line({"ok": _facts(os.stat(path) if follow else os.lstat(path))})


def _facts(status: os.stat_result) -> list[str | int | float]:
    return [_type(status.st_mode), status.st_size, status.st_mtime, status.st_ino]


def _type(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"


def mkdir(output: Output, path: str, parents: bool) -> None:
    """Make a directory."""
    if parents:
        os.makedirs(path, exist_ok=True)
    else:
        os.mkdir(path)
    output.line({"ok": None})


def rename(output: Output, source: str, target: str) -> None:
    """rename(2)."""
    os.rename(source, target)
    output.line({"ok": None})


def remove(output: Output, path: str, recursive: bool) -> None:
    """Remove a file or link, or a tree."""
    if recursive and stat.S_ISDIR(os.lstat(path).st_mode):
        file_trees.remove(path)
    else:
        os.unlink(path)
    output.line({"ok": None})


def archive(output: Output, paths: list[str]) -> None:
    """Directories as a tar stream."""
    for path in paths:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise _named(errno.ENOTDIR, path)
    output.line({"ok": None})
    file_archive.Archiver(output).archive(paths)


def restore(output: Output) -> None:
    """What such a stream holds, put back."""
    content = Content(0)
    file_restore.restore(content)
    while content.read(PIECE):
        pass  # the padding of other writers of such streams
    if content.tail.strip(b"\0") or not content.tail:
        raise _named(errno.EINVAL, "")
    output.line({"ok": None})


OPERATIONS: dict[str, Operation] = {
    "read": read,
    "stream": stream,
    "write": write,
    "list": list_directory,
    "stat": file_status,
    "mkdir": mkdir,
    "rename": rename,
    "remove": remove,
    "archive": archive,
    "restore": restore,
}
