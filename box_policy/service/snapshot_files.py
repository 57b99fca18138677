"""Where snapshots lie: in a directory, or in files that have no name."""

import fcntl
import logging
import os
import queue
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

log = logging.getLogger(__name__)

_ARCHIVE: Final = ".tar"
_DESCRIPTION: Final = ".json"
_IMAGE: Final = ".image"
"""Describes a snapshot that is an image in a container engine: it has no archive."""
_UNWANTED: Final = ".unwanted"
"""Such a description, once the snapshot was deleted, until its image is removed."""
_LOCK: Final = ".lock"
_OURS: Final = re.compile(r"snap-[0-9a-f]{16}\.tar", re.ASCII)
_PATIENCE: Final = 10.0
"""Seconds that the end of the service waits for files to be removed."""


class InvalidStorageError(ValueError):
    """A directory that snapshots can't be kept in. The message says why."""


class SnapshotDirectory:
    """A directory of one service, in which a snapshot is two files: an archive, and what describes it.

    What has no description is no snapshot. One that is an image in a container engine has nothing else.
    """

    def __init__(self, path: Path) -> None:
        """Make it if there is none, keep other services out, and remove what a crash has left half made.

        Raises:
            InvalidStorageError: it can't be used, or another service uses it.
        """
        self._path = path
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            status = path.stat()
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                raise InvalidStorageError(
                    f"{path} can be written to by others, who could give boxes their files: "
                    "chmod go-w, and own it"
                )
            self._lock = _locked(path)
            try:
                self.new_file().close()  # a file system that can't have such files is found out now
                self._remove_orphans()
            except BaseException:
                os.close(self._lock)
                raise
        except OSError as error:
            raise InvalidStorageError(f"{path}: {error.strerror}") from None

    def new_file(self) -> IO[bytes]:
        """A file without a name, gone when nobody has it open; :meth:`keep` gives it one."""
        # tempfile's own can't be given a name: it is opened with O_EXCL (open(2), O_TMPFILE).
        return open(os.open(self._path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "w+b")

    def keep(self, snapshot_id: str, file: IO[bytes], description: bytes) -> None:
        """Give the archive its name, then its description. Takes the file over."""
        archive = self._archive(snapshot_id)
        with file:
            file.flush()
            os.fsync(file.fileno())
            _name(file, archive)
        try:
            self._write(description, self._description(snapshot_id))
        except BaseException:
            with suppress(OSError):
                archive.unlink()
            raise

    def keep_image(self, snapshot_id: str, description: bytes) -> None:
        """Describe a snapshot that is an image."""
        self._write(description, self._path / f"{snapshot_id}{_IMAGE}")

    def descriptions(self) -> Iterator[tuple[str, bytes]]:
        """Of each snapshot the id and what describes it. OSError if the directory can't be read."""
        for path in sorted(self._path.glob(f"snap-*{_DESCRIPTION}")):
            if not self._archive(path.stem).is_file():
                log.warning("%s describes an archive that is missing, and is left alone", path)
                continue
            yield from _read(path)

    def images(self) -> Iterator[tuple[str, bytes]]:
        """The same of those that are images."""
        for path in sorted(self._path.glob(f"snap-*{_IMAGE}")):
            yield from _read(path)

    def unwanted_images(self) -> Iterator[tuple[str, bytes]]:
        """The same of those that were deleted, and whose images may still be there."""
        for path in sorted(self._path.glob(f"snap-*{_UNWANTED}")):
            yield from _read(path)

    def set_aside(self, snapshot_id: str) -> None:
        """From now on this image is no snapshot, whatever happens; but it is still to be removed."""
        (self._path / f"{snapshot_id}{_IMAGE}").rename(self._path / f"{snapshot_id}{_UNWANTED}")

    def forget_image(self, snapshot_id: str) -> None:
        """Nothing is left of it."""
        (self._path / f"{snapshot_id}{_UNWANTED}").unlink(missing_ok=True)

    def open(self, snapshot_id: str) -> IO[bytes]:
        """An archive, for reading."""
        return self._archive(snapshot_id).open("rb")

    def forget(self, snapshot_id: str) -> None:
        """Remove the description. From now on this is no snapshot, whatever happens."""
        self._description(snapshot_id).unlink(missing_ok=True)

    def remove(self, snapshot_id: str) -> None:
        """Remove both. To free a large archive takes a while."""
        self.forget(snapshot_id)
        self._archive(snapshot_id).unlink(missing_ok=True)

    def close(self) -> None:
        """Let other services have it."""
        os.close(self._lock)

    def _write(self, description: bytes, path: Path) -> None:
        with self.new_file() as written:
            written.write(description)
            written.flush()
            os.fsync(written.fileno())
            _name(written, path)

    def _archive(self, snapshot_id: str) -> Path:
        return self._path / f"{snapshot_id}{_ARCHIVE}"

    def _description(self, snapshot_id: str) -> Path:
        return self._path / f"{snapshot_id}{_DESCRIPTION}"

    def _remove_orphans(self) -> None:
        # None of them is about to get its description: nobody else keeps snapshots here.
        for path in self._path.glob(f"snap-*{_ARCHIVE}"):
            if _OURS.fullmatch(path.name) and not os.path.lexists(self._description(path.stem)):
                log.warning("%s: removed, a snapshot that was never finished, or half deleted", path)
                path.unlink()


def _read(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        yield path.stem, path.read_bytes()
    except OSError as error:
        log.warning("%s can't be read, and is left alone: %s", path, error.strerror)


def _locked(directory: Path) -> int:
    # Not the directory itself, which others may be able to open, and lock. The file stays: to remove it when
    # the lock is given up could remove one that the next has locked already.
    path = directory / _LOCK
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise InvalidStorageError(
            f"{directory} is in use: another service keeps its snapshots there; stop it, or choose another"
        ) from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _name(file: IO[bytes], path: Path) -> None:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # With a descriptor, since without one Python calls link(2), which would link to the link in /proc.
        os.link(f"/proc/self/fd/{file.fileno()}", path.name, dst_dir_fd=directory, follow_symlinks=True)
    finally:
        os.close(directory)


class NamelessFiles:
    """Files that have no name, and are gone with the process, however it ends. They need no descriptions."""

    def __init__(self) -> None:
        self._files: dict[str, IO[bytes]] = {}

    def new_file(self) -> IO[bytes]:
        """A file, gone when nobody has it open."""
        return tempfile.TemporaryFile()

    def keep(self, snapshot_id: str, file: IO[bytes], description: bytes) -> None:
        """Take the file over."""
        try:
            file.flush()
        except BaseException:
            with suppress(OSError):
                file.close()
            raise
        self._files[snapshot_id] = file

    def keep_image(self, snapshot_id: str, description: bytes) -> None:
        """Nothing tells of it but this process."""

    def descriptions(self) -> Iterator[tuple[str, bytes]]:
        """There are none before it begins."""
        return iter(())

    def images(self) -> Iterator[tuple[str, bytes]]:
        """Neither are these."""
        return iter(())

    def unwanted_images(self) -> Iterator[tuple[str, bytes]]:
        """Nor these."""
        return iter(())

    def set_aside(self, snapshot_id: str) -> None:
        """Nothing tells of it but this process."""

    def forget_image(self, snapshot_id: str) -> None:
        """The same."""

    def open(self, snapshot_id: str) -> IO[bytes]:
        """An archive, for reading: opened anew, since several may read it, each at a place of its own."""
        return open(f"/proc/self/fd/{self._files[snapshot_id].fileno()}", "rb")

    def forget(self, snapshot_id: str) -> None:
        """Nothing tells of it but this process."""

    def remove(self, snapshot_id: str) -> None:
        """Close the file. To free a large one takes a while."""
        if (file := self._files.pop(snapshot_id, None)) is not None:
            file.close()

    def close(self) -> None:
        """Close them all."""
        for snapshot_id in list(self._files):
            self.remove(snapshot_id)


class Disposal:
    """Closes and removes files in a thread: to free a large one takes long enough to hold up a loop.

    One after the other, and not by ``in_thread``: the end of the service waits for what is to be removed.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, work: Callable[[], object]) -> None:
        """Have it done. It is nobody's loss if it fails."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="box-policy snapshots", daemon=True)
            self._thread.start()
        self._work.put(work)

    def close(self) -> None:
        """Return once all of it is done, or takes too long."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join(_PATIENCE)
            self._thread = None

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except OSError as error:
                log.warning("a snapshot's file is left: %s", error)
