"""Whole directories of a box's, in the file worker: removed, packed into a tar stream, put back.

Links are never followed, and no name, depth or kind of file that a box can make stops the work.
"""

# Paths are strings here, as system calls take them.
# ruff: noqa: PTH101, PTH102, PTH103, PTH106, PTH108, PTH115, PTH116, PTH118, PTH120, PTH208, PTH211

import errno
import json
import os
import stat
import sys
from collections.abc import Sequence
from typing import Protocol

# tarfile loads these for archives that are compressed, which none is here. In the process that boxes are
# forked from, each would slow every fork.
_NOT_NEEDED = ("bz2", "lzma", "zlib")
_hidden = {name: sys.modules.get(name) for name in _NOT_NEEDED}
sys.modules.update(dict.fromkeys(_NOT_NEEDED))  # type: ignore[arg-type]  # None: an import of it fails
import tarfile  # noqa: E402

for _name, _module in _hidden.items():
    if _module is None:
        del sys.modules[_name]
    else:
        sys.modules[_name] = _module

BLOCK = tarfile.BLOCKSIZE
_COPY_SIZE = 256 * 1024
_MODE = 0o1777  # never set-uid or set-gid: no program of a box may set those
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


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


def remove(path: str) -> None:
    """Remove a directory and all in it.

    Not shutil.rmtree(): it recurses or holds a descriptor for each level, and a tree can be deeper than
    either bears. This walks by the current directory, which nothing else in this process needs.
    """
    _enter(path)
    levels = [(_here(), _unlink_files())]
    while True:
        directories = levels[-1][1]
        if directories:
            _enter(directories[-1])
            levels.append((_here(), _unlink_files()))
            continue
        levels.pop()
        if not levels:
            break
        os.chdir("..")
        above, directories = levels[-1]
        if _here() != above:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)  # it was moved meanwhile
        os.rmdir(directories.pop())
    os.chdir("/")
    os.rmdir(path)


def _enter(directory: str) -> None:
    fd = os.open(directory, _OPEN_DIRECTORY)
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


class Archiver:
    """Writes directories as a POSIX.1-2001 tar stream, without what is neither file, directory nor link.

    Headers are tarfile's. Its own writer would break the stream at a file that shrinks while it is read.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._linked: dict[tuple[int, int], str] = {}
        """Names of the files seen so far that have more than one."""

    def archive(self, paths: Sequence[str]) -> None:
        """Write them, and the end of the stream."""
        for path in paths:
            self._tree(path.rstrip("/") or "/")
        self._output.write(bytes(2 * BLOCK))

    def _tree(self, top: str) -> None:
        # Each level's names are read when it is reached; what is pending is a path, not an open directory.
        pending = [top]
        while pending:
            path = pending.pop()
            try:
                status = os.lstat(path)
                if stat.S_ISDIR(status.st_mode):
                    self._header(path, status, tarfile.DIRTYPE)
                    names = sorted(os.listdir(path), reverse=True)
                    pending.extend(os.path.join(path, name) for name in names)
                elif stat.S_ISLNK(status.st_mode):
                    self._header(path, status, tarfile.SYMTYPE, os.readlink(path))
                elif stat.S_ISREG(status.st_mode):
                    self._file(path)
            except (FileNotFoundError, NotADirectoryError):
                continue  # it vanished, or became something else

    def _file(self, path: str) -> None:
        try:
            fd = os.open(path, _OPEN_FILE)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                return  # a link or a socket by now
            raise
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return
            if status.st_nlink > 1:
                first = self._linked.setdefault((status.st_dev, status.st_ino), path)
                if first != path:
                    self._header(path, status, tarfile.LNKTYPE, first.lstrip("/"))
                    return
            self._header(path, status, tarfile.REGTYPE)
            self._content(fd, status.st_size)
        finally:
            os.close(fd)

    def _content(self, fd: int, size: int) -> None:
        left = size
        while left:
            # Past an end that the header did not foresee come zeros.
            piece = os.read(fd, min(_COPY_SIZE, left)) or bytes(min(_COPY_SIZE, left))
            left -= len(piece)
            self._output.write(piece)
        self._output.write(bytes(-size % BLOCK))

    def _header(self, path: str, status: os.stat_result, kind: bytes, target: str = "") -> None:
        info = tarfile.TarInfo(path.lstrip("/") or ".")
        info.type = kind
        info.mode = status.st_mode & _MODE
        info.uid, info.gid = status.st_uid, status.st_gid
        info.mtime = int(status.st_mtime)
        info.size = status.st_size if kind == tarfile.REGTYPE else 0
        info.linkname = target
        self._output.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))


class Readable(Protocol):
    """A stream."""

    def read(self, size: int) -> bytes: ...


def restore(archive: Readable) -> None:
    """Put back what :class:`Archiver` wrote. OSError EINVAL if that is no tar stream.

    Everything goes where its name says: all a name or a link can reach is the box's own.
    """
    directories: list[tuple[str, tarfile.TarInfo]] = []
    try:
        with tarfile.open(  # type: ignore[call-overload]  # of a stream it needs nothing but read()
            mode="r|", fileobj=archive, encoding="utf-8", errors="surrogateescape"
        ) as stream:
            while (member := stream.next()) is not None:
                stream.members = []  # it would keep them all
                path = "/" + member.name.lstrip("/")
                if member.isdir():
                    _make_directory(path)
                    directories.append((path, member))
                else:
                    _put(stream, member, path)
    except tarfile.TarError:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
    # Last, since what is put into a directory changes its time, and its mode may forbid that.
    for path, member in reversed(directories):
        _set_attributes(path, member)


def _make_directory(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        os.unlink(path)
        os.mkdir(path)


def _put(stream: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    if not (member.isreg() or member.issym() or member.islnk()):
        return
    _make_way(path)
    if member.islnk():
        os.link("/" + member.linkname.lstrip("/"), path, follow_symlinks=False)
        return
    if member.issym():
        os.symlink(member.linkname, path)
    else:
        _write_file(stream, member, path)
    _set_attributes(path, member)


def _make_way(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except IsADirectoryError:
        remove(path)


def _write_file(stream: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    source = stream.extractfile(member)
    fd = os.open(path, _NEW_FILE, 0o600)
    try:
        while source is not None and (piece := source.read(_COPY_SIZE)):
            write_fully(fd, piece)
    finally:
        os.close(fd)


def _set_attributes(path: str, member: tarfile.TarInfo) -> None:
    try:
        os.lchown(path, member.uid, member.gid)
    except OSError:
        pass  # an owner that this box doesn't have
    if not member.issym():
        os.chmod(path, member.mode & _MODE)
    os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)
