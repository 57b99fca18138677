"""An app with websockets, and peers of all kinds."""

import asyncio
import base64
import json
import struct

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect, unix_connect

from box_policy.control.endpoint import UnixAddress
from box_policy.control.http.answers import ApiError
from box_policy.control.http.protocol import GONE
from tests.control.serving import Served

KEY = base64.b64encode(bytes(16)).decode()
TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10


class App:
    """An app with websockets, which takes notes."""

    def __init__(self) -> None:
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.sent = 0
        self.go = asyncio.Event()
        """For those that wait before they go on."""
        self.app = Starlette(
            routes=[
                WebSocketRoute("/v2/echo", self.echo),
                WebSocketRoute("/v2/flood", self.flood),
                WebSocketRoute("/v2/deaf", self.deaf),
                WebSocketRoute("/v2/late", self.late),
                WebSocketRoute("/v2/refuse", self.refuse),
                WebSocketRoute("/v2/fail", self.fail),
                WebSocketRoute("/v2/fail-later", self.fail_later),
                WebSocketRoute("/v2/return", self.leave),
                Route("/v2/plain", self.plain, methods=["GET", "POST"]),
                Route("/v1/plain", self.plain),
            ],
            exception_handlers={ApiError: self.on_api_error},
        )

    @staticmethod
    async def on_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response_at(request.scope["path"])

    async def plain(self, request: Request) -> Response:
        return PlainTextResponse("plain")

    async def echo(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await self._echo(websocket)

    async def late(self, websocket: WebSocket) -> None:
        await self.go.wait()
        await websocket.accept()
        await self._echo(websocket)

    async def _echo(self, websocket: WebSocket) -> None:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                self.ended.put_nowait(str(message["code"]))
                return
            await websocket.send({**message, "type": "websocket.send"})

    async def flood(self, websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_bytes(bytes(8192))
                self.sent += 8192
        finally:
            self.ended.put_nowait("flood")

    async def deaf(self, websocket: WebSocket) -> None:
        """Takes nothing, until the peer is gone: it is the session that must tell of that."""
        await websocket.accept()
        gone = asyncio.create_task(websocket.scope["state"][GONE].wait())
        going = asyncio.create_task(self.go.wait())
        await asyncio.wait([gone, going], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        going.cancel()
        received = 0
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                self.ended.put_nowait(str(received))
                return
            received += len(message.get("bytes") or b"")

    async def refuse(self, websocket: WebSocket) -> None:
        raise ApiError("box_paused", "the box is paused", status=409)

    async def fail(self, websocket: WebSocket) -> None:
        raise RuntimeError("a fault")

    async def fail_later(self, websocket: WebSocket) -> None:
        await websocket.accept()
        raise RuntimeError("a fault")

    async def leave(self, websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("bye")


def connected(served: Served, path: str, **options: object) -> connect:
    address = served.endpoint.address
    if isinstance(address, UnixAddress):
        return unix_connect(str(address.path), f"ws://localhost{path}", **options)
    return connect(f"ws://{served.host}{path}", proxy=None, **options)  # type: ignore[arg-type]


def handshake(served: Served, path: str = "/v2/echo", *lines: str, without: str = "") -> bytes:
    all_lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {served.host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {KEY}",
    ]
    kept = [line for line in all_lines if not without or not line.startswith(without)]
    return "\r\n".join([*kept, *lines, "", ""]).encode()


def frame(opcode: int, data: bytes = b"", *, fin: bool = True, size: int | None = None) -> bytes:
    """A masked frame, with a mask that changes nothing; ``size`` is what it claims to have."""
    length = len(data) if size is None else size
    head = bytes([opcode | (0x80 if fin else 0)])
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 65536:
        head += bytes([0x80 | 126]) + struct.pack("!H", length)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", length)
    return head + bytes(4) + data


class Raw:
    """A websocket on which the test itself speaks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(5):
            first, length = await self.reader.readexactly(2)
            if length == 126:
                (length,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return first & 0x0F, await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


async def opened(served: Served, path: str = "/v2/echo") -> Raw:
    raw = Raw(*await served.open())
    raw.writer.write(handshake(served, path))
    assert (await raw.head()).startswith(b"HTTP/1.1 101")
    return raw


async def answer(served: Served, request: bytes) -> tuple[int, bytes, dict[str, object]]:
    """Status, head and JSON of what answers a request that opens no websocket."""
    reader, writer = await served.open()
    writer.write(request)
    raw = Raw(reader, writer)
    head, _, body = (await raw.rest()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), head.lower(), json.loads(body) if body.startswith(b"{") else {}
