"""A service: the gate, boxes behind it, and one endpoint for both of their APIs, in one process."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from box_policy.audit.sinks import Audit
from box_policy.control.endpoint import Bounds
from box_policy.control.http.address import ListeningAddress
from box_policy.control.http.answers import SERVICE_PATHS
from box_policy.control.plane import ControlPlane
from box_policy.gate.embedded import EmbeddedGate
from box_policy.gate.gate import Settings
from box_policy.policy.model import NetworkPolicy
from box_policy.sandbox.launcher import Launcher
from box_policy.service.api import make_service_app
from box_policy.service.boxes import MAX_BOXES, Boxes
from box_policy.service.context import Context
from box_policy.service.runtimes import ProgramSource, Runtimes
from box_policy.service.sizes import SIZES, Size
from box_policy.service.snapshot_images import ImageEngine
from box_policy.service.snapshots import Snapshots

_BOUNDS: Final = Bounds(connections=1024, stall_timeout=60, message_size=16 << 20)
"""Of the endpoint: many clients wait for programs in their boxes at once, and some read slowly."""


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What the operator decides."""

    gate: Settings = field(default_factory=Settings)
    programs: ProgramSource = field(default_factory=Runtimes)
    """Where the programs of boxes come from: of a kind that the launcher makes boxes of."""
    sizes: Mapping[str, Size] = field(default_factory=lambda: SIZES)
    max_boxes: int = MAX_BOXES
    default_policy: NetworkPolicy | None = None
    """Of boxes that are made without one; None: ``allow-all``."""
    snapshots: Path | None = None
    """A directory in which snapshots outlive the service."""


class Service:
    """Lives on one event loop, from :meth:`listen` to :meth:`close`."""

    def __init__(
        self,
        settings: ServiceSettings,
        launcher: Launcher,
        audit: Audit,
        *,
        records_lost: Callable[[], int] = lambda: 0,
    ) -> None:
        """Put it together. It closes the launcher in the end.

        Raises:
            InvalidStorageError: snapshots can't be kept where they should be.
        """
        engine = launcher if isinstance(launcher, ImageEngine) else None
        snapshots = Snapshots(settings.snapshots, engine=engine)
        self._launcher = launcher
        self._beginning: asyncio.Task[None] | None = None
        self._gate = EmbeddedGate(settings.gate, audit)
        self._plane = ControlPlane(self._gate.gate, audit, records_lost=records_lost)
        self.boxes = Boxes(
            gate=self._gate.gate,
            store=self._plane.store,
            launcher=launcher,
            snapshots=snapshots,
            programs=settings.programs,
            sizes=settings.sizes,
            max_boxes=settings.max_boxes,
            default_policy=settings.default_policy,
        )

    def listen(self, address: ListeningAddress, key: str | None) -> ListeningAddress:
        """Serve, from now on. Returns the address, which has a port now if it had none.

        Raises:
            ControlError: the endpoint can't be had like this. The message says what to do.
        """
        app = make_service_app(Context(self.boxes))
        address = self._plane.listen(address, key, beside={SERVICE_PATHS: app}, bounds=_BOUNDS)
        self._gate.start()
        self._plane.start()
        self._beginning = asyncio.create_task(self.boxes.snapshots.begin())
        return address

    async def close(self) -> None:
        """End every box, and serve no more."""
        if self._beginning is not None:
            self._beginning.cancel()
            await asyncio.gather(self._beginning, return_exceptions=True)
        async with contextlib.AsyncExitStack() as stack:
            # In the reverse order; each is closed, whatever becomes of the others.
            stack.push_async_callback(self._gate.close)
            stack.push_async_callback(self._launcher.close)
            stack.push_async_callback(self.boxes.close)
            stack.push_async_callback(self._plane.close)
