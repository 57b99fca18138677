"""Directories of a box's as a tar stream, in the file worker.

No name, depth or kind of file that a box can make stops the work, and nothing that its programs do to the
files meanwhile breaks the stream. Of a file with holes it has what is between them.
"""

import errno
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from box_policy.sandbox.namespaces.file_trees import (
    OPEN_DIRECTORY,
    Output,
    closed,
    named,
    open_directory,
    with_path,
)
from box_policy.sandbox.namespaces.plain_tar import BLOCK, MODE, tarfile

_COPY_SIZE = 256 * 1024
_LEASED = 100
"""Files whose leases are waited for together. Each is a descriptor."""
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_LOOK_AT_FILE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FILE = os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC

type Identity = tuple[int, int]
type Pieces = Sequence[tuple[int, int]]
"""Where a file has data: offsets and sizes. The rest is holes."""


class _Level(NamedTuple):
    """A directory on the way down. None of them is kept open: there may be more than descriptors."""

    name: str
    identity: Identity
    directories: list[str]
    """Those in it that are still to be written, the next one last."""


class Archiver:
    """Writes directories as a POSIX.1-2001 tar stream, without what is neither file, directory nor link.

    Headers are tarfile's. Its own writer would break the stream at a file that shrinks while it is read,
    follows paths no longer than PATH_MAX, and knows no holes.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._linked: dict[Identity, str] = {}
        """Names of the files seen so far that have more than one."""
        self._leased: list[tuple[str, int]] = []
        """Files that can't be read yet, each with a descriptor that only holds its place (O_PATH)."""

    def archive(self, paths: Sequence[str]) -> None:
        """Write them, and the end of the stream.

        OSError with its path if something can't be read. What vanishes meanwhile is left out.
        """
        for path in paths:
            self._tree(path.rstrip("/") or "/")
        self._wait_for_leased()
        self._output.write(bytes(2 * BLOCK))

    def _tree(self, top: str) -> None:
        fd = _open_below(top, None, top)
        if fd is None:
            return
        levels: list[_Level] = []
        try:
            levels.append(self._directory(fd, top, top))
            while levels:
                # fd is that of the last level; -1 if it isn't open any more.
                if not levels[-1].directories:
                    levels.pop()
                    fd = closed(fd)
                    continue
                path = "/".join(level.name for level in levels)
                if fd < 0 and (fd := _open_again(path, levels[-1].identity)) < 0:
                    levels.pop()
                    continue
                name = levels[-1].directories.pop()
                if (below := _open_below(name, fd, f"{path}/{name}")) is None:
                    continue
                closed(fd)
                fd = below
                levels.append(self._directory(fd, name, f"{path}/{name}"))
        finally:
            closed(fd)

    def _directory(self, fd: int, name: str, path: str) -> _Level:
        """Write a directory, and what is in it but other directories."""
        status = os.fstat(fd)
        self._header(path, status, tarfile.DIRTYPE)
        names = sorted(with_path(path, os.listdir, fd))
        directories = [entry for entry in names if not self._entry(fd, entry, f"{path}/{entry}")]
        directories.reverse()
        return _Level(name, _identity(status), directories)

    def _entry(self, dir_fd: int, name: str, path: str) -> bool:
        """Write a file or link; False if it is a directory."""
        try:
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                return False
            if stat.S_ISLNK(status.st_mode):
                self._header(path, status, tarfile.SYMTYPE, os.readlink(name, dir_fd=dir_fd))
            if not stat.S_ISREG(status.st_mode):
                return True
            fd = os.open(name, _LOOK_AT_FILE, dir_fd=dir_fd)
        except OSError as error:
            # It vanished, or was a link and is none any more (readlink(2): EINVAL).
            if error.errno in (*_GONE, errno.EINVAL):
                return True
            raise named(error, path) from None
        try:
            self._file(path, fd)
        finally:
            os.close(fd)
        return True

    def _file(self, path: str, fd: int) -> None:
        """Write what may be a file. ``fd`` holds its place, so that what is opened for reading is that."""
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return  # by now
        first = self._linked.get(_identity(status), path)
        if first != path:
            self._header(path, status, tarfile.LNKTYPE, first.lstrip("/"))
            return
        try:
            source = with_path(path, os.open, f"/proc/self/fd/{fd}", _READ_FILE | os.O_NONBLOCK)
        except BlockingIOError:
            # A program of the box has a write lease on it (fcntl(2), F_SETLEASE). This has begun to break it.
            self._leased.append((path, os.dup(fd)))
            if len(self._leased) == _LEASED:
                self._wait_for_leased()
            return
        self._content(path, source)

    def _wait_for_leased(self) -> None:
        """Write the files that others had leases on.

        Who holds one is given some time by the kernel (/proc/sys/fs/lease-break-time, 45 seconds), and loses
        it then. All are broken at once, so that this is waited for once and not for each.
        """
        while self._leased:
            path, fd = self._leased.pop(0)
            try:
                source = with_path(path, os.open, f"/proc/self/fd/{fd}", _READ_FILE)
            finally:
                os.close(fd)
            self._content(path, source)

    def _content(self, path: str, fd: int) -> None:
        """Write a file that is open for reading. Takes the descriptor over."""
        try:
            status = os.fstat(fd)
            if status.st_nlink > 1:
                first = self._linked.setdefault(_identity(status), path)
                if first != path:
                    self._header(path, status, tarfile.LNKTYPE, first.lstrip("/"))
                    return
            pieces = with_path(path, _pieces, fd, status.st_size)
            stored = sum(size for _, size in pieces)
            if stored == status.st_size:
                self._header(path, status, tarfile.REGTYPE, size=stored)
            else:
                self._sparse_header(path, status, pieces, stored)
            for offset, size in pieces:
                self._piece(path, fd, offset, size)
            self._output.write(bytes(-stored % BLOCK))
        finally:
            os.close(fd)

    def _piece(self, path: str, fd: int, offset: int, size: int) -> None:
        end = offset + size
        while offset < end:
            # Past an end that the header did not foresee come zeros.
            wanted = min(_COPY_SIZE, end - offset)
            data = with_path(path, os.pread, fd, wanted, offset) or bytes(wanted)
            offset += len(data)
            self._output.write(data)

    def _header(
        self, path: str, status: os.stat_result, kind: bytes, target: str = "", size: int = 0
    ) -> None:
        info = _info(path, status, kind)
        info.size = size
        info.linkname = target
        self._output.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _sparse_header(self, path: str, status: os.stat_result, pieces: Pieces, stored: int) -> None:
        """That of a file with holes, and its map, as of GNU tar ("Storing Sparse Files", PAX format 1.0)."""
        if not pieces or sum(pieces[-1]) < status.st_size:
            pieces = [*pieces, (status.st_size, 0)]  # its end
        numbers = [len(pieces), *(number for piece in pieces for number in piece)]
        text = b"".join(b"%d\n" % number for number in numbers)
        text += bytes(-len(text) % BLOCK)
        info = _info(path, status, tarfile.REGTYPE)
        info.pax_headers = {
            "path": info.name,
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.realsize": str(status.st_size),
        }
        extended = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")[:-BLOCK]
        info.name, info.pax_headers = "GNUSparseFile", {}
        info.size = len(text) + stored
        self._output.write(extended + _posix_header(info) + text)


def _info(path: str, status: os.stat_result, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path.lstrip("/") or ".")
    info.type = kind
    info.mode = status.st_mode & MODE
    info.uid, info.gid = status.st_uid, status.st_gid
    info.mtime = int(status.st_mtime)
    return info


def _posix_header(info: tarfile.TarInfo) -> bytes:
    """A header proper, of which the size may be 8 GiB and more.

    tarfile writes a size like that as one more extended field, which it takes for that of the whole file when
    it reads one with holes. GNU tar's binary form has room for it in the header proper; by its magic this has
    to be one of POSIX, since for GNU tar others have no extended fields.
    """
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[257:265] = tarfile.POSIX_MAGIC
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _open_below(name: str, dir_fd: int | None, path: str) -> int | None:
    """A directory, for reading; None if it vanished or became something else."""
    try:
        return os.open(name, OPEN_DIRECTORY, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise named(error, path) from None


def _open_again(path: str, identity: Identity) -> int:
    """A directory that was open before, or -1 if it is somewhere else, or gone."""
    try:
        fd = open_directory(path)
    except OSError as error:
        if error.errno in _GONE:
            return -1
        raise named(error, path) from None
    return fd if _identity(os.fstat(fd)) == identity else closed(fd)


def _pieces(fd: int, size: int) -> list[tuple[int, int]]:
    """Where a file has data."""
    pieces = []
    start = end = 0
    try:
        while end < size and (start := os.lseek(fd, end, os.SEEK_DATA)) < size:
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
            pieces.append((start, end - start))
    except OSError as error:
        if error.errno != errno.ENXIO:  # lseek(2): there is no more
            raise
    return pieces
