"""Snapshots that are images of a container engine, for a backend whose boxes can be committed to one.

An image may have to outlive its snapshot: boxes that were made from it run, or images were made of these.
It is removed as soon as the engine lets it be.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol, runtime_checkable

from box_policy.control.http.answers import ApiError
from box_policy.sandbox.launcher import SandboxError
from box_policy.service.errors import service_error

log = logging.getLogger(__name__)

_FAREWELL: Final = 30.0
"""Seconds that the end of the service waits for an engine."""


@runtime_checkable
class CommittableBox(Protocol):
    """A box whose files can become an image."""

    async def commit(self, *, labels: Mapping[str, str]) -> str:
        """Make an image of the box as it is. Returns its id. SandboxError if the engine can't."""


@runtime_checkable
class ImageEngine(Protocol):
    """A launcher that keeps images."""

    async def has_image(self, image_id: str) -> bool:
        """Whether there is such an image."""

    async def remove_image(self, image_id: str) -> None:
        """Remove one. SandboxError if the engine can't, as a box or another image needs it."""


class SnapshotImages:
    """The images of a service's snapshots. To be used from the event loop alone."""

    def __init__(self, engine: ImageEngine, forget: Callable[[str], None]) -> None:
        """Begin, with none.

        Args:
            forget: told of a snapshot whose image has been removed, by the snapshot's id. May raise OSError.
        """
        self._engine = engine
        self._forget = forget
        self._used: dict[str, str] = {}  # by a box's id, the image that it was made from
        self._unwanted: dict[str, str] = {}  # by an image, the snapshot that it was
        self._sweeping = asyncio.Lock()
        self._undoing: set[asyncio.Task[None]] = set()

    async def check(self, image: str, snapshot_id: str) -> None:
        """Accept an image that is there.

        Raises:
            ApiError: it is not.
            SandboxError: the engine doesn't say.
        """
        if not await self._engine.has_image(image):
            raise service_error(
                "snapshot_unusable",
                f"the image of snapshot {snapshot_id!r} is gone: somebody has removed {image} from the "
                "container engine, or this is another one; delete the snapshot",
            )

    async def finish[Result](
        self, work: Coroutine[Any, Any, Result], undo: Callable[[Result], object]
    ) -> Result:
        """Do something that an engine finishes once it has begun, whoever waits for it.

        What comes of it is undone, and its image removed, if nobody does any more.
        """
        working = asyncio.create_task(work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            undoing = asyncio.create_task(self._undo(working, undo))
            self._undoing.add(undoing)
            undoing.add_done_callback(self._undoing.discard)
            raise

    async def settle(self) -> None:
        """Return once nothing is under way that nobody waits for."""
        await asyncio.gather(*self._undoing)

    async def report_missing(self, images: Mapping[str, str]) -> None:
        """Say in the log which of these images, by their snapshots, are not there."""
        for snapshot_id, image in images.items():
            try:
                await self.check(image, snapshot_id)
            except ApiError as error:
                log.warning("%s", error)

    def hold(self, image: str, box_id: str) -> None:
        """Keep an image for a box, also if its snapshot is deleted meanwhile."""
        self._used[box_id] = image

    async def release(self, box_id: str) -> None:
        """The box has ended. Repeating it does nothing."""
        if self._used.pop(box_id, None) in self._unwanted:
            await self.sweep()

    def give_up(self, image: str, snapshot_id: str) -> None:
        """The snapshot is none any more; :meth:`sweep` removes its image."""
        self._unwanted[image] = snapshot_id

    async def sweep(self) -> None:
        """Remove the images that nobody needs. Those that can't be removed yet are left for the next time."""
        async with self._sweeping:
            removed = True
            while removed:  # an image can be removed once those that were made of it have been
                removed = False
                for image in reversed(list(self._unwanted)):
                    if image not in self._used.values() and await self._removed(image):
                        removed = True

    async def close(self) -> None:
        """Remove what is left, as far as it can be in time. No box needs any of it."""
        self._used.clear()
        try:
            async with asyncio.timeout(_FAREWELL):
                await self.sweep()
        except TimeoutError:
            log.warning("the container engine does not answer")
        for image, snapshot_id in self._unwanted.items():
            log.warning("the image %s of the deleted snapshot %s is left", image, snapshot_id)

    async def _undo[Result](self, working: asyncio.Task[Result], undo: Callable[[Result], object]) -> None:
        await asyncio.wait([working])
        if working.cancelled() or working.exception() is not None:
            return
        try:
            undo(working.result())
        except ApiError as error:
            log.warning("a snapshot that nobody waits for any more is left: %s", error)
        await self.sweep()

    async def _removed(self, image: str) -> bool:
        try:
            await self._engine.remove_image(image)
        except SandboxError as error:
            log.info("the image %s can't be removed yet: %s", image, error)
            return False
        snapshot_id = self._unwanted.pop(image)
        try:
            self._forget(snapshot_id)
        except OSError as error:
            log.warning("the file of the deleted snapshot %s is left: %s", snapshot_id, error.strerror)
        return True
