"""The web site that every address of the origin serves, on h11 and wsproto.

``/`` and any other path   what was asked, as JSON
``/bytes/N``               N bytes
``/slow?chunks=&interval=&size=``   that many chunks, ``interval`` seconds apart (chunked; no end if chunks=0)
``/echo``                  the body, once it is complete
``/ws``                    a WebSocket that echoes
``/close-early``           announces 1000 bytes, sends 10, and closes
``/hold``                  no answer at all
``/raw?BYTES``             those bytes, percent-encoded, as they are and at once, in place of a response
``/raw-end?BYTES``         the same, and the end of the connection
"""

import asyncio
import json
from typing import Any, Final
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.events import Request as WebSocketRequest
from wsproto.utilities import RemoteProtocolError as WebSocketError

from tests.lab.origin.journal import Journal
from tests.lab.origin.streams import Stream
from tests.lab.records import Request

_BLOCK: Final = bytes(range(256)) * 1024
_ECHO_LIMIT: Final = 64 << 20


class Site:
    """Serves connections; ``serve`` is the service of an Acceptor."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def serve(self, stream: Stream) -> None:
        """Answer the requests of one connection until either side ends it."""
        await _Exchange(self._journal, stream).run()


def _connection() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=256 << 10)


class _Exchange:
    def __init__(self, journal: Journal, stream: Stream) -> None:
        self._journal = journal
        self._stream = stream
        self._http = _connection()
        self._head_only = False

    async def run(self) -> None:
        try:
            while await self._answer():
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                await self._respond(error.error_status_hint, str(error).encode())
        await self._stream.finish()

    async def _answer(self) -> bool:
        """Answer the next request. False if no other can follow."""
        head = await self._next()
        if not isinstance(head, h11.Request):
            return False
        request = Request(
            connection=self._stream.connection.id,
            address=self._stream.connection.address,
            port=self._stream.connection.port,
            tls=self._stream.connection.tls,
            method=head.method.decode(),
            target=head.target.decode("latin-1"),
            headers=[
                (name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers.raw_items()
            ],
        )
        self._journal.requested(request)
        self._head_only = request.method == "HEAD"
        try:
            url = urlsplit(request.target)
        except ValueError as error:
            await self._respond(400, str(error).encode())
            return False
        if url.path == "/ws":
            await self._web_socket(head)
            return False
        if url.path in ("/raw", "/raw-end"):
            return await self._raw(request, unquote_to_bytes(url.query), ends=url.path == "/raw-end")
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        body = await self._body(request, keep=url.path == "/echo")
        await self._route(request, url.path, parse_qs(url.query), body)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _route(self, request: Request, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if path.startswith("/bytes/"):
            await self._bytes(int(path.removeprefix("/bytes/")))
        elif path == "/slow":
            await self._slow(
                chunks=int(query.get("chunks", ["5"])[0]),
                interval=float(query.get("interval", ["0.1"])[0]),
                size=int(query.get("size", ["10"])[0]),
            )
        elif path == "/echo":
            await self._respond(200, body, request.header("content-type") or "application/octet-stream")
        elif path == "/close-early":
            await self._send(h11.Response(status_code=200, headers=[("Content-Length", "1000")]))
            await self._send(h11.Data(data=b"0123456789"))
        elif path == "/hold":
            while await self._stream.read():
                pass
        else:
            await self._respond(200, json.dumps(self._description(request)).encode(), "application/json")

    def _description(self, request: Request) -> dict[str, Any]:
        return {
            "method": request.method,
            "host": request.header("host"),
            "target": request.target,
            "address": request.address,
            "port": request.port,
            "tls": request.tls,
            "sni": self._stream.connection.sni,
            "body_length": request.body_length,
        }

    async def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._stream.read())
        return event

    async def _body(self, request: Request, *, keep: bool) -> bytes:
        body = bytearray()
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                break
            request.body_length += len(event.data)
            if keep and len(body) < _ECHO_LIMIT:
                body += event.data
        else:
            request.complete = True
        self._journal.changed()
        return bytes(body)

    async def _send(self, event: h11.Event) -> None:
        if self._head_only and isinstance(event, h11.Data):
            return
        data = self._http.send(event)
        if data:
            await self._stream.write(data)

    async def _respond(self, status: int, body: bytes, content_type: str = "text/plain") -> None:
        headers = [("Content-Length", str(len(body))), ("Content-Type", content_type)]
        await self._send(h11.Response(status_code=status, headers=headers))
        await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())

    async def _bytes(self, count: int) -> None:
        await self._send(h11.Response(status_code=200, headers=[("Content-Length", str(count))]))
        while count:
            block = _BLOCK[:count]
            await self._send(h11.Data(data=block))
            count -= len(block)
        await self._send(h11.EndOfMessage())

    async def _slow(self, *, chunks: int, interval: float, size: int) -> None:
        await self._send(h11.Response(status_code=200, headers=[("Transfer-Encoding", "chunked")]))
        sent = 0
        while not chunks or sent < chunks:
            await self._send(h11.Data(data=b"." * size))
            sent += 1
            await asyncio.sleep(interval)
        await self._send(h11.EndOfMessage())

    async def _raw(self, request: Request, data: bytes, *, ends: bool) -> bool:
        await self._stream.write(data)
        if ends:
            return False
        await self._body(request, keep=False)
        waiting, _ = self._http.trailing_data
        # h11 knows nothing of what was sent, so the next request begins a new connection for it.
        self._http = _connection()
        if waiting:
            self._http.receive_data(waiting)
        return await self._answer()

    async def _web_socket(self, head: h11.Request) -> None:
        socket = WSConnection(ConnectionType.SERVER)
        try:
            socket.initiate_upgrade_connection(list(head.headers), head.target)
        except WebSocketError as error:
            await self._respond(400, str(error).encode())
            return
        waiting, _ = self._http.trailing_data
        if waiting:
            socket.receive_data(waiting)
        while True:
            for event in socket.events():
                match event:
                    case WebSocketRequest():
                        answer = socket.send(AcceptConnection())
                    case TextMessage() | BytesMessage():
                        answer = socket.send(event)
                    case Ping() | CloseConnection() if socket.state is not ConnectionState.CLOSED:
                        answer = socket.send(event.response())
                    case _:
                        continue
                await self._stream.write(answer)
            if socket.state is ConnectionState.CLOSED:
                break
            socket.receive_data(await self._stream.read() or None)
