"""One websocket (RFC 6455), between its peer's frames and an ASGI app."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from starlette.types import ASGIApp, Message, Scope
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from box_policy.control.http.answers import ApiError

MAX_MESSAGE: Final = 1024 * 1024
"""Bytes of a message that comes in, unless more are expected."""

_MAX_FRAGMENTS: Final = 4096
"""Frames of one message: each costs something, even an empty one, which no other bound counts."""
_QUEUE_SIZE: Final = 64 * 1024
_QUEUE_LENGTH: Final = 256
"""Bytes and messages that wait for the app, when no more are read."""
_EARLY_SIZE: Final = 4096
"""Bytes that a peer may send before it was told that it may speak."""
_MAX_DENIAL: Final = 64 * 1024
"""Bytes of an answer instead of a websocket."""
_MAX_REASON: Final = 123
"""Bytes of why a websocket is closed."""
_UNANSWERED: Final = 3
"""Pings without a sign of life, after which a peer is dead."""

type Headers = Sequence[tuple[bytes, bytes]]


class Link(Protocol):
    """The connection, as a websocket needs it."""

    def write(self, data: bytes) -> None: ...
    def hold_back(self, held: bool) -> None:
        """Read no more from the peer, or go on."""

    def is_writable(self) -> bool:
        """Does the peer take what is written?"""

    async def drain(self) -> None:
        """Wait until it does, or is gone."""

    def is_closing(self) -> bool:
        """Is it the end, though :meth:`WebSocketSession.lost` may still be to come?"""

    def deny(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer the request, and close."""

    def close(self) -> None:
        """End the connection when the peer has what was written; soon, whether it has or not."""

    def abort_later(self) -> None:
        """End the connection soon, unless the peer does."""


class Handshake:
    """A request to open a websocket, which is acceptable. Its messages have at most ``max_message`` bytes.

    Raises:
        ApiError: it isn't.
    """

    def __init__(
        self, method: bytes, version: bytes, headers: Headers, max_message: int, logger: logging.Logger
    ) -> None:
        if any(name == b"transfer-encoding" or _is_length(name, value) for name, value in headers):
            raise _invalid("it has a body")
        # Compression would let a small message become a large one, and needs memory for each connection.
        self.conn = ServerProtocol(extensions=None, max_size=max_message, logger=logger)
        lines = [b"%b / HTTP/%b" % (method, version)]
        lines += [b"%b: %b" % (name, value) for name, value in headers if _concerns_it(name)]
        self.conn.receive_data(b"\r\n".join([*lines, b"", b""]))
        request = next(iter(self.conn.events_received()), None)
        if not isinstance(request, Request):
            raise _invalid("its headers can't be read")
        self.response: Response = self.conn.accept(request)
        if self.response.status_code == 101:
            return
        if any(name == b"sec-websocket-version" and value != b"13" for name, value in headers):
            # RFC 6455, section 4.4
            raise _invalid("only version 13 is spoken here", 426, {"sec-websocket-version": "13"})
        raise _invalid(str(self.conn.handshake_exc))


def _is_length(name: bytes, value: bytes) -> bool:
    return name == b"content-length" and value.strip(b"0") != b""


def _concerns_it(name: bytes) -> bool:
    return name in (b"connection", b"upgrade") or name.startswith(b"sec-websocket-")


def _invalid(why: str, status: int = 400, headers: dict[str, str] | None = None) -> ApiError:
    message = f"the request can't open a websocket: {why}"
    return ApiError("websocket_invalid", message, status=status, headers=headers)


def is_wanted(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Does a request ask for a websocket (RFC 9110, section 7.8)?"""
    tokens: dict[bytes, set[bytes]] = {b"connection": set(), b"upgrade": set()}
    for name, value in headers:
        if name in tokens:
            tokens[name] |= {token.strip().lower() for token in value.split(b",")}
    return b"upgrade" in tokens[b"connection"] and b"websocket" in tokens[b"upgrade"]


def subprotocols(headers: Headers) -> list[str]:
    """What a request offers to speak."""
    offered = b",".join(value for name, value in headers if name == b"sec-websocket-protocol")
    return [token.strip() for token in offered.decode("latin-1").split(",") if token.strip()]


class WebSocketSession:
    """One websocket.

    Not one of uvicorn's: there, pongs and empty fragments pile up without bound, what comes before the
    handshake's end is lost or raises, and who is held back is taken for dead. The frames themselves are
    the matter of the library websockets.
    """

    def __init__(self, handshake: Handshake, link: Link, ping_interval: float) -> None:
        self._conn = handshake.conn
        self._response = handshake.response
        self._link = link
        self._ping_interval = ping_interval
        self._queue: deque[tuple[Message, int]] = deque([({"type": "websocket.connect"}, 0)])
        self._queued = 0
        self._arrived = asyncio.Event()
        self._arrived.set()
        self._disconnect: Message | None = None
        self._early = bytearray()
        self._message = bytearray()
        self._is_text = False
        self._fragments = 0
        self._denial: tuple[int, Headers, bytearray] | None = None
        self._accepted = False
        self._ended = False
        """Nothing is sent any more."""
        self._heard = True
        self._unanswered = 0
        self._ping_timer: asyncio.TimerHandle | None = None
        self.gone = asyncio.Event()
        """The websocket has ended, though messages of before may still wait for the app."""
        self.peer_may_send = True
        """Has the peer not yet said that it is done?"""

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Let the app have the websocket, until it returns."""
        try:
            await app(scope, self._receive, self._send)
        finally:
            if not self._ended:
                if self._accepted:
                    self._close(CloseCode.NORMAL_CLOSURE, "")
                else:
                    self._end(CloseCode.ABNORMAL_CLOSURE)
                    self._link.close()

    def received(self, data: bytes) -> None:
        """The peer has sent this."""
        self._heard = True
        if not self._accepted:
            self._early += data
            self.regulate()
            return
        self._conn.receive_data(data)
        for event in self._conn.events_received():
            if isinstance(event, Frame) and not self._ended:
                self._take(event)
        self._write()
        self.regulate()

    def resumed(self) -> None:
        """The peer has taken what was written."""
        self._heard = True
        self.regulate()

    def regulate(self) -> None:
        """Read no more than the app takes; and nothing from a peer that takes no pongs."""
        early = not self._accepted and len(self._early) >= _EARLY_SIZE
        untaken = not self._ended and (early or self._is_full())
        self._link.hold_back(untaken or not self._link.is_writable())

    def lost(self) -> None:
        """The connection is gone."""
        self.peer_may_send = False
        self._end(CloseCode.ABNORMAL_CLOSURE)

    def shutdown(self) -> None:
        """The endpoint closes."""
        if self._ended:
            self._link.close()
        elif self._accepted:
            self._conn.send_close(CloseCode.GOING_AWAY, "the server is stopping")
            self._end(CloseCode.GOING_AWAY)
            self._write()
            self._link.close()
        else:
            self._end(CloseCode.GOING_AWAY)
            self._link.close()

    def _take(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.TEXT | Opcode.BINARY:
                self._is_text = frame.opcode is Opcode.TEXT
                self._message, self._fragments = bytearray(), 0
                self._append(frame)
            case Opcode.CONT:
                self._append(frame)

    def _append(self, frame: Frame) -> None:
        self._fragments += 1
        if self._fragments > _MAX_FRAGMENTS:
            self._fail(CloseCode.POLICY_VIOLATION, "too many fragments")
            return
        self._message += frame.data
        if not frame.fin:
            return
        message: Message = {"type": "websocket.receive"}
        size = len(self._message)
        if self._is_text:
            try:
                message["text"] = self._message.decode()
            except UnicodeDecodeError:
                self._fail(CloseCode.INVALID_DATA, "text that is not UTF-8")
                return
        else:
            message["bytes"] = bytes(self._message)
        self._message = bytearray()
        self._queue.append((message, size))
        self._queued += size
        self._arrived.set()

    def _write(self) -> None:
        """Write what there is to say; and end the connection if the protocol has come to its end."""
        pieces = self._conn.data_to_send()
        if data := b"".join(pieces):
            self._link.write(data)
        if b"" in pieces:  # websockets.protocol.SEND_EOF
            received = self._conn.close_rcvd
            self.peer_may_send = received is None
            closed = received or self._conn.close_sent
            self._end(CloseCode.ABNORMAL_CLOSURE if closed is None else closed.code)
            self._link.close()

    def _fail(self, code: CloseCode, why: str) -> None:
        """What the peer does can't go on: nothing more of it is taken."""
        self._conn.fail(code, why)
        self._end(code)

    def _end(self, code: int) -> None:
        """Send nothing more, and tell the app."""
        self._ended = True
        self.gone.set()
        if self._disconnect is None:
            self._disconnect = {"type": "websocket.disconnect", "code": int(code), "reason": ""}
        self._arrived.set()
        if self._ping_timer is not None:
            self._ping_timer.cancel()
            self._ping_timer = None

    def _close(self, code: int, reason: str) -> None:
        """Begin the closing handshake. The peer has a moment for its part."""
        self._conn.send_close(code, reason.encode()[:_MAX_REASON].decode(errors="ignore"))
        self._end(code)
        self._write()
        self.regulate()
        self._link.abort_later()

    async def _receive(self) -> Message:
        while not self._queue:
            if self._disconnect is not None:
                return self._disconnect
            self._arrived.clear()
            await self._arrived.wait()
        message, size = self._queue.popleft()
        self._queued -= size
        self.regulate()
        return message

    async def _send(self, message: Message) -> None:
        while not self._link.is_writable() and not self._ended:
            await self._link.drain()
        kind = message["type"]
        if self._ended or self._link.is_closing():
            if kind == "websocket.close":
                return
            raise ConnectionResetError("the websocket is closed")
        if self._accepted:
            self._send_open(kind, message)
        elif kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.http.response.start" and self._denial is None:
            self._denial = message["status"], list(message.get("headers", ())), bytearray()
        elif kind == "websocket.http.response.body" and self._denial is not None:
            self._deny(message)
        elif kind == "websocket.close":
            self._end(CloseCode.ABNORMAL_CLOSURE)
            self._link.deny(403, [(b"content-length", b"0")], b"")
        else:
            raise RuntimeError(f"not to be sent before the websocket is accepted: {kind}")

    def _send_open(self, kind: str, message: Message) -> None:
        if kind == "websocket.close":
            self._close(message.get("code", CloseCode.NORMAL_CLOSURE), message.get("reason") or "")
            return
        if kind != "websocket.send":
            raise RuntimeError(f"not to be sent to an open websocket: {kind}")
        data = message.get("bytes")
        try:
            if data is not None:
                self._conn.send_binary(data)
            else:
                self._conn.send_text(message["text"].encode())
        except InvalidState:
            raise ConnectionResetError("the websocket is closing") from None
        self._write()

    def _accept(self, message: Message) -> None:
        headers = self._response.headers
        del headers["Date"]  # as in every other answer
        for name, value in message.get("headers", ()):
            headers[name.decode("latin-1")] = value.decode("latin-1")
        if subprotocol := message.get("subprotocol"):
            headers["Sec-WebSocket-Protocol"] = subprotocol
        self._conn.send_response(self._response)
        self._accepted = True
        self._write()
        self._ping_later()
        early, self._early = bytes(self._early), bytearray()
        self.received(early)

    def _deny(self, message: Message) -> None:
        if self._denial is None:
            raise RuntimeError("a body without a status")
        status, headers, body = self._denial
        body += message.get("body", b"")
        if len(body) > _MAX_DENIAL:
            raise RuntimeError("the answer is too large")
        if not message.get("more_body", False):
            self._end(CloseCode.ABNORMAL_CLOSURE)
            self._link.deny(status, headers, bytes(body))

    def _ping_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._ping_timer = loop.call_later(self._ping_interval, self._ping)

    def _ping(self) -> None:
        """See if the peer is alive. Whom the app holds back, or who is slow to read, can't be heard."""
        writable = self._link.is_writable()
        if self._heard or not writable or self._is_full():
            self._unanswered = 0
        self._heard = False
        if self._unanswered >= _UNANSWERED:
            self._fail(CloseCode.INTERNAL_ERROR, "no answer to pings")
            self._write()
            return
        if writable:
            self._unanswered += 1
            self._conn.send_ping(b"")
            self._write()
        self._ping_later()

    def _is_full(self) -> bool:
        return self._queued >= _QUEUE_SIZE or len(self._queue) >= _QUEUE_LENGTH
