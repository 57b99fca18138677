"""Snapshots of boxes: their files in one archive each, and the policy that goes with them."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from box_policy.control.http.answers import ApiError
from box_policy.control.threads import in_thread
from box_policy.policy.model import NetworkPolicy, PolicyError
from box_policy.service.errors import service_error
from box_policy.service.snapshot_files import (
    Disposal,
    InvalidStorageError,
    NamelessFiles,
    SnapshotDirectory,
)

__all__ = ["InvalidStorageError", "Snapshot", "Snapshots"]

log = logging.getLogger(__name__)

MAX_SNAPSHOTS: Final = 1_000
MAX_SNAPSHOT_BYTES: Final = 16 << 30
"""Of one, unless its box says less."""
MAX_STORED_BYTES: Final = 64 << 30
"""Of all together."""
_PIECE: Final = 1 << 20


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


@dataclass(slots=True, eq=False)
class _Place:
    """That of a snapshot that is being taken."""

    size: int = 0


class Snapshots:
    """All snapshots of a service. To be used from the event loop alone.

    Kept in a directory they outlive it; without one they lie in files that have no name, and are gone with
    the process, however it ends.
    """

    def __init__(self, directory: Path | None = None, *, max_stored_bytes: int = MAX_STORED_BYTES) -> None:
        """Begin, with what the directory holds.

        Args:
            max_stored_bytes: of all snapshots together; when they have that many, no more are taken.

        Raises:
            InvalidStorageError: the directory can't be used, or another service uses it.
        """
        self._max_stored_bytes = max_stored_bytes
        self._storage = NamelessFiles() if directory is None else SnapshotDirectory(directory)
        self._disposal = Disposal()
        self._places: set[_Place] = set()
        try:
            self._snapshots = _found(self._storage)
        except OSError as error:
            self._storage.close()
            raise InvalidStorageError(f"{directory}: {error.strerror}") from None
        self._stored_bytes = sum(snapshot.size_bytes for snapshot in self._snapshots.values())

    def get(self, snapshot_id: str) -> Snapshot:
        """Raises ApiError if there is none of that id."""
        try:
            return self._snapshots[snapshot_id]
        except KeyError:
            raise _unknown(snapshot_id) from None

    def of_box(self, box_id: str) -> list[Snapshot]:
        """A box's, the oldest first."""
        return [snapshot for snapshot in self._snapshots.values() if snapshot.box_id == box_id]

    async def take(
        self,
        archive: AsyncIterable[bytes],
        *,
        name: str,
        box_id: str,
        policy: NetworkPolicy,
        runtime: str | None,
        size: str,
        max_bytes: int = MAX_SNAPSHOT_BYTES,
    ) -> Snapshot:
        """Keep an archive of at most ``max_bytes``. If that fails nothing of it is left.

        Raises:
            ApiError: it is too large, there are too many, or they have too many bytes, or the disk is full.
            Exception: what ``archive`` raises, as it is: that is of the box, and not of what is kept here.
        """
        with self._place() as place:
            with _storing():
                file = self._storage.new_file()
            try:
                await self._write(archive, file, place, max_bytes)
            except BaseException:
                self._disposal.add(file.close)
                raise
            snapshot = Snapshot(
                id=f"snap-{secrets.token_hex(8)}",
                name=name,
                box_id=box_id,
                size_bytes=place.size,
                created_at=int(time.time()),
                policy=policy,
                runtime=runtime,
                size=size,
            )
            await self._keep(snapshot, file)
            self._snapshots[snapshot.id] = snapshot
            self._stored_bytes += snapshot.size_bytes
        return snapshot

    @asynccontextmanager
    async def open(self, snapshot: Snapshot) -> AsyncIterator[AsyncIterator[bytes]]:
        """Its archive, in pieces. Once entered, nothing takes it away: not even deleting the snapshot.

        Entering waits for nothing, so that a snapshot that was found just now is there.

        Raises:
            ApiError: it has been deleted meanwhile, or can't be read.
        """
        # Here and not in a thread: meanwhile its descriptor could be closed, and be another file's.
        snapshot_id = self.get(snapshot.id).id
        with _reading():
            try:
                file = self._storage.open(snapshot_id)
            except FileNotFoundError:
                raise _unknown(snapshot_id) from None
        try:
            yield _pieces(file)
        finally:
            self._disposal.add(file.close)  # which frees it, if it was deleted meanwhile

    def delete(self, snapshot_id: str) -> None:
        """Delete one, for good. Its space is free a little later.

        Raises:
            ApiError: there is none of that id, or the directory can't be changed.
        """
        snapshot = self.get(snapshot_id)
        with _storing("deleted"):
            self._storage.forget(snapshot_id)
        del self._snapshots[snapshot_id]
        self._stored_bytes -= snapshot.size_bytes
        self._disposal.add(partial(self._storage.remove, snapshot_id))

    def ids(self) -> list[str]:
        """Of all of them."""
        return list(self._snapshots)

    def close(self) -> None:
        """Let go of what lies in files without a name, and of the directory."""
        self._disposal.close()
        self._storage.close()

    @contextmanager
    def _place(self) -> Iterator[_Place]:
        """A place for one more."""
        if len(self._snapshots) + len(self._places) >= MAX_SNAPSHOTS:
            raise service_error("storage_full", f"there are {MAX_SNAPSHOTS} snapshots: delete some")
        place = _Place()
        self._places.add(place)
        try:
            yield place
        finally:
            self._places.remove(place)

    async def _write(
        self, archive: AsyncIterable[bytes], file: IO[bytes], place: _Place, max_bytes: int
    ) -> None:
        piece = bytearray()
        async for data in archive:
            place.size += len(data)
            self._check_size(place, max_bytes)
            piece += data
            if len(piece) >= _PIECE:
                with _storing():
                    await in_thread(file.write, bytes(piece))
                piece.clear()
        with _storing():
            await in_thread(file.write, bytes(piece))

    def _check_size(self, place: _Place, max_bytes: int) -> None:
        if place.size > max_bytes:
            raise service_error("snapshot_too_large", f"the files have more than {max_bytes >> 20} MiB")
        if self._stored_bytes + sum(place.size for place in self._places) > self._max_stored_bytes:
            raise service_error(
                "storage_full",
                f"all snapshots together may have {self._max_stored_bytes >> 20} MiB: delete some",
            )

    async def _keep(self, snapshot: Snapshot, file: IO[bytes]) -> None:
        """Hand the file over to the storage, which alone may close it from now on."""
        content = asdict(snapshot) | {"policy": snapshot.policy.canonical()}
        description = json.dumps(content).encode()
        keeping = asyncio.create_task(in_thread(self._storage.keep, snapshot.id, file, description))
        try:
            with _storing():
                await asyncio.shield(keeping)
        except asyncio.CancelledError:
            keeping.add_done_callback(partial(self._discard, snapshot.id))  # the thread goes on
            raise

    def _discard(self, snapshot_id: str, kept: asyncio.Task[None]) -> None:
        if not kept.cancelled() and kept.exception() is None:
            self._disposal.add(partial(self._storage.remove, snapshot_id))


def _unknown(snapshot_id: str) -> ApiError:
    return service_error("snapshot_unknown", f"there is no snapshot {snapshot_id!r}")


@contextmanager
def _storing(what: str = "kept") -> Iterator[None]:
    """Around what is done to the service's own files, and to nothing of a box."""
    try:
        yield
    except OSError as error:
        raise service_error("storage_full", f"the snapshot can't be {what}: {error.strerror}") from None


@contextmanager
def _reading() -> Iterator[None]:
    """Around what reads the service's own files: such an error must not be taken for one of a box's file."""
    try:
        yield
    except OSError as error:
        raise service_error("box_failed", f"the snapshot can't be read: {error.strerror}") from None


def _found(storage: SnapshotDirectory | NamelessFiles) -> dict[str, Snapshot]:
    found = [_described(*one) for one in storage.descriptions()]
    in_order = sorted(filter(None, found), key=lambda snapshot: snapshot.created_at)
    return {snapshot.id: snapshot for snapshot in in_order}


def _described(snapshot_id: str, description: bytes) -> Snapshot | None:
    try:
        content: dict[str, Any] = json.loads(description)
        policy = NetworkPolicy.parse(content.pop("policy"))
        snapshot = Snapshot(policy=policy, **content)
        if snapshot.id != snapshot_id:
            raise ValueError("it is that of another")
    except (ValueError, TypeError, KeyError, AttributeError, PolicyError) as error:
        log.warning("what should describe %s does not, and is left alone: %s", snapshot_id, error)
        return None
    return snapshot


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while True:
        with _reading():
            piece = await in_thread(file.read, _PIECE)
        if not piece:
            return
        yield piece
