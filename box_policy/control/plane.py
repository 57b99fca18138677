"""The control of one gate: the store, the files that policies come from, and the endpoint."""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from box_policy.audit.metrics import Metrics
from box_policy.audit.sinks import Audit
from box_policy.audit.stream import RecordStream
from box_policy.control.api import Activity, Backend, make_app
from box_policy.control.endpoint import Bounds, Endpoint, ListeningAddress
from box_policy.control.file_source import FileSource
from box_policy.control.store import PolicyStore
from box_policy.gate.gate import Gate

log = logging.getLogger(__name__)


class ControlPlane:
    """Lives as long as the gate does. What may fail comes first, and raises; then :meth:`start`."""

    def __init__(
        self,
        gate: Gate,
        audit: Audit,
        *,
        ready: Callable[[], bool] = lambda: True,
        records_lost: Callable[[], int] = lambda: 0,
    ) -> None:
        """Control a gate.

        Args:
            ready: whether the gate serves everything that it should.
            records_lost: how many records could not be written.
        """
        self.store = PolicyStore(gate, audit)
        self._gate = gate
        self._audit = audit
        self._ready = ready
        self._records_lost = records_lost
        self._source: FileSource | None = None
        self._endpoint: Endpoint | None = None
        self._stream: RecordStream | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def load_files(self, path: Path, boxes: Collection[str]) -> None:
        """Take the policies of these boxes from a file or a directory, and of others that it has files for.

        Raises:
            PolicyFileError: one of them has no acceptable policy.
        """
        source = FileSource(path, self.store, self._audit, boxes=boxes)
        source.load()
        self._source = source

    def listen(
        self,
        address: ListeningAddress,
        token: str | None,
        *,
        beside: Mapping[str, ASGIApp] | None = None,
        bounds: Bounds | None = None,
    ) -> ListeningAddress:
        """Open the endpoint. Returns its address, which has a port now if it had none.

        Args:
            beside: other apps that the endpoint serves, by the prefix of their paths.
            bounds: what its peers may cost.

        Raises:
            ControlError: it can't be had like this. The message says what to do.
        """
        stream, metrics = RecordStream(), Metrics(version("box-policy"))
        source = self._source
        backend = Backend(
            version=version("box-policy"),
            store=self.store,
            audit=self._audit,
            stream=stream,
            metrics=metrics,
            resolve=self._gate.resolver.addresses,
            activity=self._activity,
            records_lost=self._records_lost,
            ready=self._ready,
            file_sources=source.status if source is not None else lambda: (),
        )
        app = _Apps(make_app(backend), beside or {})
        endpoint = Endpoint(
            address,
            app,
            token=token,
            foreign=self._gate.is_in_a_box,
            bounds=bounds,
            websockets=bool(beside),
        )
        endpoint.start()
        self._audit.add_paced(stream)
        self._audit.add(metrics)
        self._endpoint, self._stream = endpoint, stream
        return endpoint.address

    def start(self) -> None:
        """Follow the files and answer requests, until :meth:`close`."""
        if self._source is not None:
            self._spawn(self._source.watch())
        if self._endpoint is not None:
            self._spawn(self._endpoint.serve())

    async def close(self) -> None:
        """Follow and answer no more. Policies stay in force."""
        if self._stream is not None:
            self._stream.close()
        if self._endpoint is not None:
            await self._endpoint.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _activity(self, box_id: str) -> Activity:
        box = self._gate.boxes[box_id]
        return Activity(len(box.live), box.pending)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_complain)
        self._tasks.append(task)


class _Apps:
    """One app for most paths, and others for those below their prefixes."""

    def __init__(self, app: ASGIApp, beside: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._beside = beside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        app = next((app for prefix, app in self._beside.items() if path.startswith(prefix)), self._app)
        await app(scope, receive, send)


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("box-policy's control has failed; policies stay as they are", exc_info=task.exception())
