"""Snapshots of boxes: their files in one archive each, or an image, and the policy that goes with them."""

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final, Unpack

from box_policy.control.http.answers import ApiError
from box_policy.control.threads import in_thread
from box_policy.sandbox.docker import identity
from box_policy.sandbox.launcher import SandboxError
from box_policy.service.errors import service_error
from box_policy.service.snapshot import About, Snapshot, found, new_id, unwanted_images
from box_policy.service.snapshot_files import (
    Disposal,
    InvalidStorageError,
    NamelessFiles,
    SnapshotDirectory,
)
from box_policy.service.snapshot_images import CommittableBox, ImageEngine, SnapshotImages

log = logging.getLogger(__name__)

__all__ = ["InvalidStorageError", "Snapshot", "Snapshots"]

MAX_SNAPSHOTS: Final = 1_000
MAX_SNAPSHOT_BYTES: Final = 16 << 30
"""Of one, unless its box says less."""
MAX_STORED_BYTES: Final = 64 << 30
"""Of all together."""
_PIECE: Final = 1 << 20


@dataclass(slots=True, eq=False)
class _Place:
    """That of a snapshot that is being taken."""

    size: int = 0


class Snapshots:
    """All snapshots of a service. To be used from the event loop alone.

    Kept in a directory they outlive it; without one they lie in files that have no name, and are gone with
    the process, however it ends. Images are removed at its end.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        max_stored_bytes: int = MAX_STORED_BYTES,
        engine: ImageEngine | None = None,
    ) -> None:
        """Begin, with what the directory holds.

        Args:
            max_stored_bytes: of all archives together; when they have that many, no more are taken.
            engine: has the images, where boxes are committed.

        Raises:
            InvalidStorageError: the directory can't be used, or another service uses it.
        """
        self._max_stored_bytes = max_stored_bytes
        self._storage = NamelessFiles() if directory is None else SnapshotDirectory(directory)
        self._disposal = Disposal()
        self._places: set[_Place] = set()
        self._directory = directory
        self._images = None if engine is None else SnapshotImages(engine, self._storage.forget_image)
        try:
            self._snapshots = found(self._storage)
            unwanted = unwanted_images(self._storage)
        except OSError as error:
            self._storage.close()
            raise InvalidStorageError(f"{directory}: {error.strerror}") from None
        if self._images is not None:
            for snapshot in unwanted:
                self._images.give_up(snapshot.image or "", snapshot.id)
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
        max_bytes: int = MAX_SNAPSHOT_BYTES,
        **about: Unpack[About],
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
                id=new_id(),
                size_bytes=place.size,
                created_at=int(time.time()),
                **about,
            )
            await self._keep(snapshot, file)
            self._snapshots[snapshot.id] = snapshot
            self._stored_bytes += snapshot.size_bytes
        return snapshot

    async def take_image(self, box: CommittableBox, **about: Unpack[About]) -> Snapshot:
        """Keep a box as an image. If that fails nothing of it is left.

        Raises:
            ApiError: there are too many, or the disk is full.
            SandboxError: the engine can't.
        """
        if self._images is None:
            raise service_error("not_supported", "snapshots that are images take a backend that has images")
        return await self._images.finish(
            self._commit(self._images, box, about), undo=lambda taken: self.delete(taken.id)
        )

    @asynccontextmanager
    async def used(
        self, snapshot: Snapshot | None, box_id: str
    ) -> AsyncIterator[AsyncIterator[bytes] | None]:
        """While a box is made from it, if from any: its archive. An image is there until :meth:`release`.

        Entering takes what it needs before it waits for anything, so that a snapshot that was found just now
        is there.

        Raises:
            ApiError: it has been deleted meanwhile, or can't be read, or is of another backend.
        """
        if snapshot is None:
            yield None
            return
        self.check_backend(snapshot)
        if snapshot.image is None or self._images is None:
            async with self.open(snapshot) as archive:
                yield archive
            return
        self._images.hold(self.get(snapshot.id).image or "", box_id)
        try:
            await self._images.check(snapshot.image, snapshot.id)
            yield None
        except BaseException:
            await self._images.release(box_id)
            raise

    async def release(self, box_id: str) -> None:
        """A box has ended that may have been made from one."""
        if self._images is not None:
            await self._images.release(box_id)

    def check_backend(self, snapshot: Snapshot) -> None:
        """Accept a snapshot that was made by the backend that the service has.

        Raises:
            ApiError: it was made by another.
        """
        if (snapshot.image is None) == (self._images is None):
            return
        made_by = "namespaces" if snapshot.image is None else "docker"
        raise service_error(
            "snapshot_unusable",
            f"snapshot {snapshot.id!r} was made of a box of the {made_by} backend, and this service has "
            f"another: box-policy serve --backend {made_by} can use it",
        )

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

    def check_deletable(self, snapshot_id: str) -> None:
        """Accept a snapshot that :meth:`delete` can delete. Raises ApiError if there is none such."""
        snapshot = self.get(snapshot_id)
        if snapshot.image is not None:
            self.check_backend(snapshot)

    def delete(self, snapshot_id: str) -> None:
        """Delete one, for good. Its space is free a little later.

        Raises:
            ApiError: there is none of that id, or the directory can't be changed, or it is of a backend that
                the service doesn't have.
        """
        self.check_deletable(snapshot_id)
        snapshot = self.get(snapshot_id)
        if snapshot.image is not None and self._images is not None:
            with _storing("deleted"):
                self._storage.set_aside(snapshot_id)
            del self._snapshots[snapshot_id]
            self._images.give_up(snapshot.image, snapshot_id)
            return
        with _storing("deleted"):
            self._storage.forget(snapshot_id)
        del self._snapshots[snapshot_id]
        self._stored_bytes -= snapshot.size_bytes
        self._disposal.add(partial(self._storage.remove, snapshot_id))

    def ids(self) -> list[str]:
        """Of all of them."""
        return list(self._snapshots)

    async def begin(self) -> None:
        """Once, at the start: finish what was deleted, and say in the log which images are missing."""
        if self._images is None:
            return
        try:
            await self._images.sweep()
            kept = {one.id: one.image for one in self._snapshots.values() if one.image is not None}
            await self._images.report_missing(kept)
        except SandboxError as error:
            log.warning("the images of snapshots can't be looked at: %s", error)

    async def sweep(self) -> None:
        """Remove the images of deleted snapshots, as far as they can be."""
        if self._images is not None:
            await self._images.sweep()

    async def close_images(self) -> None:
        """At the end, when no box is left: remove the images that nobody would find again."""
        if self._images is None:
            return
        await self._images.settle()
        if self._directory is None:
            for snapshot in list(self._snapshots.values()):
                self.delete(snapshot.id)
        await self._images.close()

    def close(self) -> None:
        """Let go of what lies in files without a name, and of the directory."""
        self._disposal.close()
        self._storage.close()

    async def _commit(self, images: SnapshotImages, box: CommittableBox, about: About) -> Snapshot:
        with self._place():
            snapshot_id = new_id()
            # Should this process be killed, whoever finds the image knows whether anybody still wants it.
            label = identity.EPHEMERAL if self._directory is None else snapshot_id
            image = await box.commit(labels={identity.SNAPSHOT: label})
            snapshot = Snapshot(
                id=snapshot_id, size_bytes=0, created_at=int(time.time()), image=image, **about
            )
            try:
                with _storing():
                    await in_thread(self._storage.keep_image, snapshot_id, snapshot.description())
            except BaseException:
                images.give_up(image, snapshot_id)
                await images.sweep()
                raise
            self._snapshots[snapshot_id] = snapshot
        return snapshot

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
        keeping = asyncio.create_task(
            in_thread(self._storage.keep, snapshot.id, file, snapshot.description())
        )
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


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while True:
        with _reading():
            piece = await in_thread(file.read, _PIECE)
        if not piece:
            return
        yield piece
