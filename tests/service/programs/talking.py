"""The client's side of a session, without a network between."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import Message
from starlette.websockets import WebSocket

from box_policy.sandbox.namespaces.box import NamespaceBox
from box_policy.service.programs.session import serve_session
from box_policy.service.programs.slots import Slots
from tests.service.programs.conftest import CWD, ENVIRONMENT, PATIENCE, nothing_left


class Client:
    """The other side of a websocket."""

    def __init__(self) -> None:
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"})
        self.heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.taken = 0
        """Messages that the session has taken from this side."""
        self.accepted = False
        self.closed: int | None = None
        self.reads = asyncio.Event()
        self.reads.set()
        self.gone = False
        self.waiting = False
        """Whether something could not be sent yet."""

    async def receive(self) -> Message:
        message = await self._inbox.get()
        self.taken += 1
        return message

    async def send(self, message: Message) -> None:
        self.waiting = not self.reads.is_set()
        await self.reads.wait()
        if self.gone:
            raise ConnectionResetError("gone")
        match message["type"]:
            case "websocket.accept":
                self.accepted = True
            case "websocket.close":
                self.closed = message["code"]
                self.heard.put_nowait({"type": "closed"})
            case _:
                assert self.closed is None
                self.heard.put_nowait(json.loads(message["text"]))

    def say(self, kind: str, **fields: object) -> None:
        self.say_text(json.dumps({"type": kind, **fields}))

    def say_text(self, text: str | bytes) -> None:
        key = "text" if isinstance(text, str) else "bytes"
        self._inbox.put_nowait({"type": "websocket.receive", key: text})

    def write(self, data: bytes) -> None:
        self.say("stdin", data=base64.b64encode(data).decode())

    def leave(self) -> None:
        self.gone = True
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def next(self, kind: str) -> dict[str, Any]:
        frame = await asyncio.wait_for(self.heard.get(), PATIENCE)
        assert frame["type"] == kind, frame
        return frame

    async def until(self, text: str) -> str:
        """What the program writes, up to and including ``text``."""
        shown = b""
        while text.encode() not in shown:
            frame = await asyncio.wait_for(self.heard.get(), PATIENCE)
            assert frame["type"] in ("stdout", "stderr"), (frame, shown)
            shown += base64.b64decode(frame["data"])
        return shown.decode()

    async def rest(self) -> tuple[bytes, bytes, int]:
        """All that the program still writes, and how it ends."""
        shown = {"stdout": b"", "stderr": b""}
        async with asyncio.timeout(PATIENCE):
            while (frame := await self.heard.get())["type"] != "exit":
                shown[frame["type"]] += base64.b64decode(frame["data"])
            await self.next("closed")
        assert (self.closed, self.heard.qsize()) == (1000, 0)
        return shown["stdout"], shown["stderr"], frame["code"]


@asynccontextmanager
async def connected(box: NamespaceBox, slots: Slots | None = None, **options: Any) -> AsyncIterator[Client]:
    """A client; at the end the session must have ended, without an exception and with nothing left."""
    with nothing_left():
        client = Client()
        websocket = WebSocket({"type": "websocket"}, client.receive, client.send)
        serving = asyncio.create_task(
            serve_session(
                websocket, box, environment=ENVIRONMENT, home=CWD, slots=slots or Slots(), **options
            )
        )
        try:
            yield client
            async with asyncio.timeout(PATIENCE):
                await serving
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def started(box: NamespaceBox, script: str | None = None, **fields: object) -> AsyncIterator[Client]:
    async with connected(box) as client:
        client.say("start", **({"argv": ["sh", "-c", script]} if script is not None else {}), **fields)
        first = await client.next("started")
        assert type(first["pid"]) is int and first["pid"] > 0
        assert len(bytes.fromhex(first["execId"])) == 16
        yield client
