"""A tar stream of directories put back into a box, in the file worker. Holes in files come back as holes."""

import errno
import io
import os
import stat
from contextlib import suppress
from typing import NamedTuple, Protocol, cast

from box_policy.sandbox.namespaces.file_trees import closed, open_directory, remove, with_path, write_fully
from box_policy.sandbox.namespaces.plain_tar import MODE, tarfile

_COPY_SIZE = 256 * 1024
_NEW_FILE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Readable(Protocol):
    """A stream."""

    def read(self, size: int) -> bytes: ...


class _Attributes(NamedTuple):
    uid: int
    gid: int
    mode: int
    modified: float


def restore(archive: Readable) -> None:
    """Put back what :class:`~.file_archive.Archiver` wrote.

    Everything goes where its name says: all a name or a link can reach is the box's own. OSError EINVAL if
    this is no tar stream; with the path if something can't be put there.
    """
    places = _Places()
    directories: list[tuple[str, _Attributes]] = []
    try:
        with tarfile.open(  # type: ignore[call-overload]  # of a stream it needs nothing but read()
            mode="r|", fileobj=archive, encoding="utf-8", errors="surrogateescape"
        ) as stream:
            while (member := stream.next()) is not None:
                stream.members = []  # it would keep them all
                path = _path(member.name)
                if member.isdir():
                    with_path(path, _make_directory, *places.find(path))
                    directories.append((path, _attributes(member)))
                elif member.isreg() or member.issym() or member.islnk():
                    with_path(path, _put, stream, member, *places.find(path))
    except (tarfile.TarError, ValueError, OverflowError):
        # The latter two where tarfile reads numbers, or where they are past what the kernel takes.
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
    # Last, since what is put into a directory changes its time, and its mode may forbid that.
    for path, attributes in reversed(directories):
        with_path(path, _set_attributes, *places.find(path), attributes)
    places.close()


def _path(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
    return "/" + "/".join(parts)


class _Places:
    """Where members go. The directory of the last one stays open: most often the next goes there as well."""

    def __init__(self) -> None:
        self._directory = ""
        self._fd = -1

    def find(self, path: str) -> tuple[int, str]:
        """The directory of ``path``, made if there is none, and the name in it."""
        directory, _, name = path.rpartition("/")
        if self._fd < 0 or directory != self._directory:
            self.close()
            self._fd = with_path(path, open_directory, directory, make=True)
            self._directory = directory
        return self._fd, name or "."

    def close(self) -> None:
        """Let go of it."""
        self._fd = closed(self._fd)


def _make_directory(dir_fd: int, name: str) -> None:
    try:
        os.mkdir(name, dir_fd=dir_fd)
    except FileExistsError:
        try:
            if stat.S_ISDIR(os.stat(name, dir_fd=dir_fd).st_mode):
                return
        except FileNotFoundError:
            pass  # a link to nowhere
        os.unlink(name, dir_fd=dir_fd)
        os.mkdir(name, dir_fd=dir_fd)


def _put(stream: tarfile.TarFile, member: tarfile.TarInfo, dir_fd: int, name: str) -> None:
    _make_way(dir_fd, name)
    if member.islnk():
        _link(_path(member.linkname), dir_fd, name)
        return
    if member.issym():
        os.symlink(member.linkname, name, dir_fd=dir_fd)
    else:
        _write_file(stream, member, dir_fd, name)
    _set_attributes(dir_fd, name, _attributes(member))


def _make_way(dir_fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        remove(name, dir_fd)


def _link(first: str, dir_fd: int, name: str) -> None:
    directory, _, first_name = first.rpartition("/")
    first_fd = open_directory(directory)
    try:
        os.link(first_name, name, src_dir_fd=first_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
    finally:
        os.close(first_fd)


def _write_file(stream: tarfile.TarFile, member: tarfile.TarInfo, dir_fd: int, name: str) -> None:
    # Below its buffer, which asks whether the stream can seek: past holes it can, and that is all there is.
    source = cast("io.BufferedReader", stream.extractfile(member)).raw
    # The type that typeshed gives is that of a field of the header.
    pieces = cast("list[tuple[int, int]]", member.sparse) if member.issparse() else [(0, member.size)]
    fd = os.open(name, _NEW_FILE, 0o600, dir_fd=dir_fd)
    try:
        for offset, size in pieces:
            source.seek(offset, os.SEEK_SET)
            os.lseek(fd, offset, os.SEEK_SET)
            left = size
            while left > 0 and (data := source.read(min(_COPY_SIZE, left))):
                left -= len(data)
                write_fully(fd, data)
        os.ftruncate(fd, member.size)
    finally:
        os.close(fd)


def _attributes(member: tarfile.TarInfo) -> _Attributes:
    return _Attributes(member.uid, member.gid, member.mode & MODE, member.mtime)


def _set_attributes(dir_fd: int, name: str, attributes: _Attributes) -> None:
    with suppress(OSError):  # an owner that this box doesn't have
        os.chown(name, attributes.uid, attributes.gid, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISLNK(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
        os.chmod(name, attributes.mode, dir_fd=dir_fd)
    times = (attributes.modified, attributes.modified)
    os.utime(name, times, dir_fd=dir_fd, follow_symlinks=False)
