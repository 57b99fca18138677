"""The stream of records as server-sent events (HTML Standard, section 9.2)."""

import asyncio
from collections.abc import Awaitable
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from box_policy.audit.stream import Batch, Reader, RecordStream
from box_policy.control.http.queries import Query

_KEEP_ALIVE: Final = 15.0
"""Seconds without a record after which a comment is sent: so that neither side takes the other for dead."""
_COMMENT: Final = b": \n"


class Events(Response):
    """An answer that goes on for as long as its client stays."""

    media_type = "text/event-stream"

    def __init__(
        self,
        stream: RecordStream,
        query: Query,
        resumed: Reader | None,
        *,
        open_streams: set["Events"],
        keep_alive: float = _KEEP_ALIVE,
    ) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._stream = stream
        self._query = query
        self._resumed = resumed
        self._open = open_streams
        self._keep_alive = keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._open.add(self)
        try:
            # Before the client hears of it: it must not miss what comes after it has.
            reader = await self._reader()
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await _while_connected(receive, self._send(reader, send))
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._open.discard(self)

    async def _reader(self) -> Reader:
        reader = self._resumed
        if reader is None:
            reader = await self._stream.backlog(self._query.backlog, self._query.wanted)
        return reader if self._query.follow else reader.until_now()

    async def _send(self, reader: Reader, send: Send) -> None:
        body = self._place(reader)
        while True:
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})
            if reader.ended:
                return
            batch = reader.take()
            if batch is not None:
                body = self._render(batch)
                # Also if there is nothing to show: a reader that has much to catch up with lets others go on.
                await asyncio.sleep(0)
                continue
            body = b""
            try:
                async with asyncio.timeout(self._keep_alive):
                    await reader.wait()
            except TimeoutError:
                body = _COMMENT + self._place(reader)

    def _place(self, reader: Reader) -> bytes:
        """An id without an event: where a client goes on that has seen nothing yet, or nothing for long."""
        return f"id: {self._stream.id_of(reader.position - 1)}\n\n".encode()

    def _render(self, batch: Batch) -> bytes:
        parts = []
        if batch.missed != 0:
            missed = "null" if batch.missed is None else batch.missed
            parts.append(f'event: lost\ndata: {{"records":{missed}}}\n\n')
        for number, entry in enumerate(batch.entries, batch.first):
            if self._query.wanted(entry):
                event_id = self._stream.id_of(number)
                parts.append(f"id: {event_id}\nevent: {entry.event}\ndata: {entry.as_json()}\n\n")
        return "".join(parts).encode("ascii")


async def _while_connected(receive: Receive, sending: Awaitable[None]) -> None:
    """Await ``sending`` for as long as the client is there."""
    tasks = [asyncio.ensure_future(sending), asyncio.ensure_future(_disconnect(receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _disconnect(receive: Receive) -> None:
    # A body that comes with the request is nobody's, and one without an end is taken for a client that left.
    ignored = 0
    while ignored < 65536:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        ignored += len(message.get("body", b""))
