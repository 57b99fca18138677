"""The boxes of a service: how they begin, and how they end.

A box's policy is in force before its listeners are served, and its listeners before anything in it runs.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final

from box_policy.control.http.answers import ApiError
from box_policy.control.store import InForce, PolicyStore, UnknownBoxError
from box_policy.gate.gate import Gate
from box_policy.policy.model import NetworkPolicy
from box_policy.sandbox.launcher import Box, BoxSpec, Launcher, Limits, SandboxError
from box_policy.service.box import HOME, ServedBox, box_unknown
from box_policy.service.errors import file_error, service_error
from box_policy.service.requests import MAX_TTL, CreateBox
from box_policy.service.runtimes import Programs, ProgramSource, Runtimes
from box_policy.service.sizes import DEFAULT_SIZE, SIZES, Size
from box_policy.service.snapshot import About, Snapshot
from box_policy.service.snapshot_images import CommittableBox
from box_policy.service.snapshots import Snapshots

log = logging.getLogger(__name__)

MAX_BOXES: Final = 256
_REMEMBERED: Final = 1_000
"""Boxes that have ended, of which is known why."""
_SOURCE: Final = "service"
_IN_SNAPSHOTS: Final = ("/workspace", "/home/box")
"""Directories of a box that its snapshots hold."""
_FOR_EMPTY_FILES: Final = 2 << 30
"""Bytes of an archive for what takes no room in the box itself: a million names, links and empty files."""
_SNAPSHOT_WITHIN: Final = 1800.0
"""Seconds that a snapshot may take, however its box hinders it."""


class Boxes:
    """All boxes of a service. To be used from the event loop alone."""

    def __init__(
        self,
        *,
        gate: Gate,
        store: PolicyStore,
        launcher: Launcher,
        snapshots: Snapshots,
        programs: ProgramSource | None = None,
        sizes: Mapping[str, Size] = SIZES,
        max_boxes: int = MAX_BOXES,
        default_policy: NetworkPolicy | None = None,
    ) -> None:
        """Begin, without any.

        Args:
            default_policy: of boxes that are made without one; None: ``allow-all``, as of the hosted service.
        """
        self.snapshots = snapshots
        self.environment: dict[str, str] = {}
        """What the programs of boxes get that are made from now on."""
        self._gate = gate
        self._store = store
        self._launcher = launcher
        self._programs = programs or Runtimes()
        self._sizes = sizes
        self._max_boxes = max_boxes
        self._default_policy = default_policy or NetworkPolicy.parse("allow-all")
        self._boxes: dict[str, ServedBox] = {}
        self._names: dict[str, str | None] = {}  # the id of each; None while its box is being made
        self._being_made = 0
        self._ended: OrderedDict[str, str] = OrderedDict()
        self._lives: set[asyncio.Task[None]] = set()
        self._closed = False

    def get(self, key: str) -> ServedBox:
        """The box of this id, or this name. Raises ApiError if there is none."""
        box = self._boxes.get(key) or self._boxes.get(self._names.get(key) or "")
        if box is None:
            raise box_unknown(key, self._ended.get(key))
        return box

    def all(self, label: str | None = None) -> list[ServedBox]:
        """Every box, the oldest first; with ``label`` those that have it."""
        return [box for box in self._boxes.values() if label is None or label in box.labels]

    def in_force(self, box: ServedBox) -> InForce:
        """A box's policy in force. Raises ApiError if the box has ended meanwhile."""
        try:
            return self._store.get(box.id)
        except UnknownBoxError:
            raise box_unknown(box.id, self._ended.get(box.id)) from None

    async def put_policy(self, box: ServedBox, policy: NetworkPolicy) -> InForce:
        """Put another policy in force. When it returns, it is. Raises ApiError if the box has ended."""
        try:
            in_force = await self._store.put(box.id, policy, source=_SOURCE)
        except UnknownBoxError:
            raise box_unknown(box.id, self._ended.get(box.id)) from None
        box.changed()
        return in_force

    async def create(
        self, request: CreateBox, policy: NetworkPolicy | None, snapshot: Snapshot | None = None
    ) -> ServedBox:
        """Make a box, behind its policy from the first packet on.

        Args:
            policy: None: that of the snapshot, or else the default.

        Raises:
            ApiError: it can't be had like this.
        """
        size = request.size or (snapshot.size if snapshot else DEFAULT_SIZE)
        if size not in self._sizes:
            raise service_error(
                "request_invalid", f"there is no size {size!r}: there are {', '.join(self._sizes)}"
            )
        runtime = request.runtime or (snapshot.runtime if snapshot else None)
        programs = self._programs_of(request, runtime, snapshot)
        if policy is None:
            policy = snapshot.policy if snapshot else self._default_policy
        if self._closed:
            raise _closing()
        if len(self._boxes) + self._being_made >= self._max_boxes:
            raise service_error(
                "too_many_boxes",
                f"there are {self._max_boxes} boxes, and may be no more: delete some",
            )
        box_id = f"box-{secrets.token_hex(8)}"
        bounds = self._sizes[size]
        spec = BoxSpec(
            box_id,
            read_only=programs.read_only,
            scratch_bytes=bounds.disk,
            directories=[HOME],
            rootfs=programs.root,
            image=programs.image,
            limits=Limits(memory_bytes=bounds.memory, pids=bounds.pids, cpus=bounds.cpus),
        )
        ttl = request.ttl or (MAX_TTL if request.ephemeral else None)
        with self._reserved(request.name):
            # Before anything is awaited, since the snapshot may be deleted meanwhile.
            async with self.snapshots.used(snapshot, box_id) as archive:
                sandbox = await self._launch(spec, policy, archive)
            if self._closed:
                await self._discard(sandbox, "the service is closing")
                raise _closing()
            box = ServedBox(
                id=box_id,
                name=request.name,
                labels=list(request.labels),
                size=size,
                runtime=runtime,
                keep_alive=request.keep_alive,
                ephemeral=request.ephemeral,
                environment={
                    **({} if programs.path is None else {"PATH": programs.path}),
                    "HOME": HOME,
                    **self.environment,
                    **request.env_vars,
                },
                image=programs.image,
                snapshot_id=snapshot.id if snapshot else None,
                sandbox=sandbox,
                expires_at=None if ttl is None else time.time() + ttl,
            )
            self._boxes[box_id] = box
            if request.name is not None:
                self._names[request.name] = box_id
        life = asyncio.create_task(self._live(box, ttl))
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)
        return box

    async def pause(self, box: ServedBox) -> None:
        """Stop a box's programs, and take nothing new from it. Repeating it does nothing."""
        async with box.turn:
            if box.paused:
                return
            box.paused = True  # before it is, so that nothing is started meanwhile
            try:
                await box.sandbox.pause()
            except BaseException:
                box.paused = False
                raise
            # A program may have itself continued, by a timer's SIGCONT. Then it gets no further than this.
            self._gate.pause(box.id)
            box.changed()

    async def resume(self, box: ServedBox) -> None:
        """Let a box's programs go on, behind the policy that is in force by now."""
        async with box.turn:
            if not box.paused:
                return
            self._gate.resume(box.id)
            await box.sandbox.resume()
            box.paused = False
            box.changed()

    async def delete(self, box: ServedBox) -> None:
        """Delete a box. When it returns nothing of it is left."""
        await self._end(box, "it was deleted")

    async def take_snapshot(self, box: ServedBox, name: str) -> Snapshot:
        """Keep a box's files, and its policy."""
        about = About(
            name=name,
            box_id=box.id,
            policy=self.in_force(box).policy,
            runtime=box.runtime,
            size=box.size,
        )
        try:
            async with asyncio.timeout(_SNAPSHOT_WITHIN):
                if isinstance(box.sandbox, CommittableBox):
                    return await self.snapshots.take_image(box.sandbox, **about)
                async with box.sandbox.files.archive(_IN_SNAPSHOTS) as archive:
                    max_bytes = 2 * self._sizes[box.size].disk + _FOR_EMPTY_FILES
                    return await self.snapshots.take(archive, max_bytes=max_bytes, **about)
        except TimeoutError:
            message = f"the box has not given its files within {_SNAPSHOT_WITHIN:.0f} seconds"
            raise service_error("box_failed", message) from None

    async def close(self) -> None:
        """Delete every box, and make no more."""
        self._closed = True
        await asyncio.gather(*(self._end(box, "the service was closed") for box in self.all()))
        for life in list(self._lives):
            life.cancel()
        await self.snapshots.close_images()
        self.snapshots.close()

    def _programs_of(self, request: CreateBox, runtime: str | None, snapshot: Snapshot | None) -> Programs:
        if snapshot is None or snapshot.image is None:
            return self._programs.programs(runtime, request.image)
        if request.image is not None or runtime != snapshot.runtime:
            raise service_error(
                "request_invalid", "a box from a snapshot has its programs: leave out image and runtime"
            )
        return Programs(image=snapshot.image)

    @contextlib.contextmanager
    def _reserved(self, name: str | None) -> Iterator[None]:
        """Keep a place, and a name, for a box that is being made."""
        if name is not None:
            if name in self._names or name in self._boxes:
                raise service_error("name_taken", f"there is a box named {name!r} already")
            self._names[name] = None
        self._being_made += 1
        try:
            yield
        finally:
            self._being_made -= 1
            if name is not None and self._names[name] is None:
                del self._names[name]

    async def _launch(
        self, spec: BoxSpec, policy: NetworkPolicy, archive: AsyncIterator[bytes] | None
    ) -> Box:
        compiled = await self._store.compile(policy)
        try:
            sandbox = await self._launcher.create(spec)
        except SandboxError as error:
            raise service_error("box_failed", f"the box can't be made: {error}") from None
        try:
            self._store.create(sandbox.id, compiled, source=_SOURCE)
            sockets = sandbox.listeners
            self._gate.serve(sandbox.id, tcp=sockets.tcp, dns_udp=sockets.dns_udp, dns_tcp=sockets.dns_tcp)
            if archive is not None:
                await sandbox.files.restore(archive)
        except BaseException as error:
            await self._discard(sandbox, "it could not be made")
            if isinstance(error, SandboxError):
                raise service_error("box_failed", f"the box can't be made: {error}") from None
            if isinstance(error, OSError):
                raise file_error(error) from None
            raise
        return sandbox

    async def _discard(self, sandbox: Box, why: str) -> None:
        with contextlib.suppress(UnknownBoxError):
            self._store.remove(sandbox.id, source=_SOURCE, detail=why)
        await sandbox.close()
        await self.snapshots.release(sandbox.id)

    async def _live(self, box: ServedBox, ttl: float | None) -> None:
        try:
            async with asyncio.timeout(ttl):
                await box.sandbox.closed()
            why = "its processes have ended"
        except TimeoutError:
            why = "its time was over"
        await self._end(box, why)

    async def _end(self, box: ServedBox, why: str) -> None:
        if self._boxes.pop(box.id, None) is not None:
            for key in (box.id, box.name):
                if key is not None:
                    self._ended[key] = why
            while len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
            if box.name is not None:
                del self._names[box.name]
            log.info("box %s: %s", box.id, why)
        await self._discard(box.sandbox, why)


def _closing() -> ApiError:
    return service_error("closing", "the service is about to end")
