"""Snapshots of boxes: their files in one archive each, and the policy that goes with them."""

import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

from box_policy.control.http.answers import ApiError
from box_policy.control.threads import in_thread
from box_policy.policy.model import NetworkPolicy, PolicyError
from box_policy.service.errors import service_error

log = logging.getLogger(__name__)

MAX_SNAPSHOTS: Final = 1_000
MAX_SNAPSHOT_BYTES: Final = 16 << 30
_PIECE: Final = 1 << 20
_ARCHIVE: Final = ".tar"
_DESCRIPTION: Final = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is known of a snapshot."""

    id: str
    name: str
    box_id: str
    size_bytes: int
    created_at: int
    """Seconds since the epoch."""
    policy: NetworkPolicy
    """In force for the box when the snapshot was taken."""
    runtime: str | None
    size: str

    def fields(self) -> dict[str, object]:
        """As the API tells it."""
        return {
            "id": self.id,
            "name": self.name,
            "box_id": self.box_id,
            "size_bytes": self.size_bytes,
            "status": "ready",
            "created_at": self.created_at,
            "network_policy": self.policy.canonical(),
            "runtime": self.runtime,
            "size": self.size,
        }


class InvalidStorageError(ValueError):
    """A directory that snapshots can't be kept in. The message says why."""


class Snapshots:
    """All snapshots of a service.

    Kept in a directory they outlive it; without one they lie in files that have no name, and are gone with
    the process, however it ends.
    """

    def __init__(self, directory: Path | None = None, *, max_bytes: int = MAX_SNAPSHOT_BYTES) -> None:
        """Begin, with what the directory holds.

        Raises:
            InvalidStorageError: the directory can't be used.
        """
        self._directory = directory
        self._max_bytes = max_bytes
        self._snapshots: dict[str, Snapshot] = {}
        self._files: dict[str, IO[bytes]] = {}  # without a directory, by id
        self._being_taken = 0
        if directory is not None:
            self._load(directory)

    def get(self, snapshot_id: str) -> Snapshot:
        """Raises ApiError if there is none of that id."""
        try:
            return self._snapshots[snapshot_id]
        except KeyError:
            raise service_error("snapshot_unknown", f"there is no snapshot {snapshot_id!r}") from None

    def of_box(self, box_id: str) -> list[Snapshot]:
        """A box's, the oldest first."""
        return [snapshot for snapshot in self._snapshots.values() if snapshot.box_id == box_id]

    def __len__(self) -> int:
        return len(self._snapshots)

    async def take(
        self,
        archive: AsyncIterable[bytes],
        *,
        name: str,
        box_id: str,
        policy: NetworkPolicy,
        runtime: str | None,
        size: str,
    ) -> Snapshot:
        """Keep an archive. If that fails nothing of it is left.

        Raises:
            ApiError: it is too large, there are too many, or the disk is full.
        """
        if len(self._snapshots) + self._being_taken >= MAX_SNAPSHOTS:
            raise service_error("storage_full", f"there are {MAX_SNAPSHOTS} snapshots: delete some")
        self._being_taken += 1
        try:
            file = _unnamed(self._directory)
        except OSError as error:
            self._being_taken -= 1
            raise _full(error) from None
        try:
            written = await self._write(archive, file)
            snapshot = Snapshot(
                id=f"snap-{secrets.token_hex(8)}",
                name=name,
                box_id=box_id,
                size_bytes=written,
                created_at=int(time.time()),
                policy=policy,
                runtime=runtime,
                size=size,
            )
            if self._directory is None:
                self._files[snapshot.id] = file
            else:
                await in_thread(_keep, self._directory, snapshot, file)
                file.close()
        except OSError as error:
            file.close()
            raise _full(error) from None
        except BaseException:
            file.close()
            raise
        finally:
            self._being_taken -= 1
        self._snapshots[snapshot.id] = snapshot
        return snapshot

    @asynccontextmanager
    async def open(self, snapshot: Snapshot) -> AsyncIterator[AsyncIterator[bytes]]:
        """Its archive, in pieces."""
        file = await in_thread(self._open, snapshot)
        try:
            yield _pieces(file)
        finally:
            file.close()

    def delete(self, snapshot_id: str) -> None:
        """Raises ApiError if there is none of that id."""
        self.get(snapshot_id)
        if self._directory is not None:
            for suffix in (_DESCRIPTION, _ARCHIVE):
                (self._directory / f"{snapshot_id}{suffix}").unlink(missing_ok=True)
        else:
            self._files.pop(snapshot_id).close()
        del self._snapshots[snapshot_id]

    def ids(self) -> list[str]:
        """Of all of them."""
        return list(self._snapshots)

    def close(self) -> None:
        """Let go of what lies in files without a name."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    async def _write(self, archive: AsyncIterable[bytes], file: IO[bytes]) -> int:
        written, piece = 0, bytearray()
        async for data in archive:
            written += len(data)
            if written > self._max_bytes:
                raise service_error(
                    "snapshot_too_large", f"the files have more than {self._max_bytes >> 20} MiB"
                )
            piece += data
            if len(piece) >= _PIECE:
                await in_thread(file.write, bytes(piece))
                piece.clear()
        await in_thread(file.write, bytes(piece))
        await in_thread(file.flush)
        return written

    def _open(self, snapshot: Snapshot) -> IO[bytes]:
        if self._directory is not None:
            return (self._directory / f"{snapshot.id}{_ARCHIVE}").open("rb")
        # Opened anew: several boxes may be made from it at once, each at a place of its own.
        return open(f"/proc/self/fd/{self._files[snapshot.id].fileno()}", "rb")

    def _load(self, directory: Path) -> None:
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            status = directory.stat()
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                raise InvalidStorageError(
                    f"{directory} can be written to by others, who could give boxes their files: "
                    "chmod go-w, and own it"
                )
            _unnamed(directory).close()  # a file system that can't have such files is found out now
            for path in sorted(directory.glob(f"snap-*{_DESCRIPTION}")):
                if (snapshot := _described(path)) is not None:
                    self._snapshots[snapshot.id] = snapshot
        except OSError as error:
            raise InvalidStorageError(f"{directory}: {error.strerror}") from None
        in_order = sorted(self._snapshots.values(), key=lambda snapshot: snapshot.created_at)
        self._snapshots = {snapshot.id: snapshot for snapshot in in_order}


def _unnamed(directory: Path | None) -> IO[bytes]:
    """A new file without a name, gone when nobody has it open; to be given one in its directory, if any."""
    if directory is None:
        return tempfile.TemporaryFile()
    # tempfile's own can't be given a name: it is opened with O_EXCL (open(2), O_TMPFILE).
    return open(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "w+b")


def _name(file: IO[bytes], path: Path) -> None:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # With a descriptor, since without one Python calls link(2), which would link to the link in /proc.
        os.link(f"/proc/self/fd/{file.fileno()}", path.name, dst_dir_fd=directory, follow_symlinks=True)
    finally:
        os.close(directory)


def _full(error: OSError) -> ApiError:
    return service_error("storage_full", f"the snapshot can't be kept: {error.strerror}")


def _keep(directory: Path, snapshot: Snapshot, file: IO[bytes]) -> None:
    """Give the archive its name, then its description: what has no description is no snapshot."""
    archive = directory / f"{snapshot.id}{_ARCHIVE}"
    description = directory / f"{snapshot.id}{_DESCRIPTION}"
    content = asdict(snapshot) | {"policy": snapshot.policy.canonical()}
    os.fsync(file.fileno())
    _name(file, archive)
    try:
        with _unnamed(directory) as written:
            written.write(json.dumps(content).encode())
            written.flush()
            os.fsync(written.fileno())
            _name(written, description)
    except BaseException:
        with suppress(OSError):
            archive.unlink()
        raise


def _described(path: Path) -> Snapshot | None:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        policy = NetworkPolicy.parse(content.pop("policy"))
        snapshot = Snapshot(policy=policy, **content)
        if f"{snapshot.id}{_DESCRIPTION}" != path.name or not path.with_suffix(_ARCHIVE).is_file():
            raise ValueError("its archive is missing")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, PolicyError) as error:
        log.warning("%s is no description of a snapshot, and is left alone: %s", path, error)
        return None
    return snapshot


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await in_thread(file.read, _PIECE):
        yield piece
