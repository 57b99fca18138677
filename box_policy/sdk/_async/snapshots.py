"""Snapshots of a box's files."""

import builtins
import time
from typing import Final

from box_policy.sdk import answers
from box_policy.sdk._async.transport import AsyncTransport
from box_policy.sdk.concurrency import async_sleep
from box_policy.sdk.connection import segment
from box_policy.sdk.errors import BoxError, BoxTimeoutError
from box_policy.sdk.types import Snapshot

_READY_WITHIN: Final = 300.0
_PAUSE: Final = 0.5


class AsyncSnapshots:
    """The snapshots of one box."""

    def __init__(self, transport: AsyncTransport, at: str) -> None:
        self._transport = transport
        self._path = f"{at}/snapshots"

    async def take(self, name: str) -> Snapshot:
        """Take one, and wait until it can be used.

        Raises:
            BoxError: it could not be taken.
        """
        answer = await self._transport.request("POST", self._path, body={"name": name})
        snapshot = answers.model(Snapshot, answer)
        end = time.monotonic() + _READY_WITHIN
        while snapshot.status == "creating":
            if time.monotonic() > end:
                raise BoxTimeoutError("Snapshot creation timed out")
            await async_sleep(_PAUSE)
            snapshot = next((one for one in await self.all() if one.id == snapshot.id), snapshot)
        if snapshot.status != "ready":
            raise BoxError("Snapshot creation failed")
        return snapshot

    async def all(self) -> builtins.list[Snapshot]:
        """All that the service has of this box."""
        answer = answers.as_object(await self._transport.request("GET", self._path))
        return [answers.model(Snapshot, one) for one in answers.as_list(answer.get("snapshots") or [])]

    async def delete(self, snapshot_id: str) -> None:
        """Delete one."""
        await self._transport.request("DELETE", f"{self._path}/{segment(snapshot_id, 'id of a snapshot')}")
