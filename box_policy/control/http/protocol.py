"""uvicorn's HTTP/1.1, with bounds for what it leaves open: slow heads, stalled readers, endless peers.

And with websockets, on the connections that requests for them have come on.
"""

import asyncio
import logging
import socket
from collections.abc import Buffer, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from box_policy.control.http.admission import Admission
from box_policy.control.http.answers import CLOSE, SAFE_HEADERS, ApiError
from box_policy.control.http.departures import Departures, Flow
from box_policy.control.http.guard import Guard
from box_policy.control.http.lingering import LingeringTransport
from box_policy.control.http.pace import Pace
from box_policy.control.http.requests import Requests
from box_policy.control.http.websocket import (
    MAX_MESSAGE,
    Handshake,
    Headers,
    WebSocketSession,
    is_wanted,
    subprotocols,
)

_log: Final = logging.getLogger(__name__)
_log.setLevel(logging.WARNING)  # uvicorn's code would also trace each connection

DISPLACED: Final = "displaced"
"""The key of a request's ``state`` under which the server says how many connections it has displaced."""

GONE: Final = "gone"
"""The key of a websocket's ``state`` under which there is an :class:`asyncio.Event` of its end.

For an app that waits for something else than a message.
"""

_SLICE: Final = 4096
"""Bytes that h11, or a websocket, is given in one turn of the loop; the kernel keeps the rest, and the others
have theirs."""
_CHUNKED_SLICE: Final = 2048
"""The same of a body in chunks, each of which costs h11 about 25 microseconds, however small it is."""
BODY_SLICE: Final = 64 * 1024
"""The same of a body that h11 only passes on, or that is dropped."""
_HALF_CLOSED: Final = 15.0
"""Seconds in which a peer that sends no more is answered."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one peer, or all of them, may cost. Times in seconds."""

    connections: int = 128
    first_head_timeout: float = 3
    """For the first request head, from the connection's start."""
    head_timeout: float = 10
    """For each other, from its first byte."""
    idle_timeout: int = 30
    """Between requests."""
    stall_timeout: float = 15
    """For a peer that doesn't read."""
    linger: float = 5
    """For a peer to take what is left of the last answer."""
    head_size: int = 16 * 1024
    """Bytes."""
    message_size: int = MAX_MESSAGE
    """Bytes of a message that a websocket's peer sends."""
    ping_interval: float = 20
    """Between two looks whether the peer of a websocket is alive."""


class _Paced(logging.Filter):
    """Keeps strangers' mistakes from filling the log."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace(burst=10, per_second=0.2)

    def filter(self, record: logging.LogRecord) -> bool:
        return self._pace.allows()


_log.addFilter(_Paced())


@dataclass(frozen=True)
class Shared:
    """What the connections of one endpoint have in common."""

    config: Config
    state: ServerState
    bounds: Bounds
    guard: Guard
    admission: Admission
    peer_refusal: Callable[[socket.socket], str | None]
    websockets: bool
    """Are there websockets? Otherwise who asks for one is answered as if it hadn't."""
    departures: Departures
    closed: asyncio.Event
    scratch: bytearray
    """What was received last, until the call returns that tells of it."""


class ControlProtocol(H11Protocol, asyncio.BufferedProtocol):
    """One connection to the control endpoint.

    A buffered protocol, so that it says how much is received at once: what h11 makes of it is work of one
    turn of the loop.
    """

    transport: LingeringTransport
    conn: Requests
    flow: Flow

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared.config, shared.state, {}, asyncio.get_running_loop())
        self.conn = Requests(shared.bounds.head_size, self._admit)
        self.logger = _log
        self.access_log = False
        self._shared = shared
        self._bounds = shared.bounds
        self._refusal: str | None = "who it is was not asked"
        self._authenticated = False
        self._answers_head = False
        self._half_closed = False
        self._ending = False
        """The stall timer is about the end of the connection, whatever is taken meanwhile."""
        self._session: WebSocketSession | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(LingeringTransport(transport, self._is_unread))
        self.flow = Flow(self.transport, self._reading_changed)
        # Accepted before the endpoint was closed, but only now told of.
        if self._shared.closed.is_set() or not self._shared.admission.enter(self):
            transport.abort()
            return
        self._refusal = self._shared.peer_refusal(transport.get_extra_info("socket"))
        self._await_head(self._bounds.first_head_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.admission.leave(self)
        self._cancel_timers()
        self._unset_keepalive_if_required()
        self._shared.departures.forget(self._fd())
        super().connection_lost(exc)
        if self._session is not None:
            self._session.lost()
        # Many a connection is a stranger's: what is left of it must not wait for the garbage collector.
        self.transport.ended()
        self.flow.ended()
        self.conn.ended()

    def displace(self) -> None:
        """End the connection: another needs its place."""
        self.transport.abort()

    def get_buffer(self, sizehint: int) -> Buffer:
        size = _SLICE
        if self.transport.lingering:
            size = BODY_SLICE
        elif self._session is None and self.conn.their_state is h11.SEND_BODY:
            size = _CHUNKED_SLICE if self.conn.chunked else BODY_SLICE
        return memoryview(self._shared.scratch)[:size]

    def buffer_updated(self, nbytes: int) -> None:
        if self.transport.lingering:
            self.transport.drop(nbytes)
            return
        data = bytes(memoryview(self._shared.scratch)[:nbytes])
        if self._authenticated:
            self._take(data)
        else:
            self.transport.pause_reading()
            self._shared.admission.in_turn(partial(self._take_from_stranger, data))

    def _take_from_stranger(self, data: bytes) -> None:
        self._take(data)
        if not self.flow.read_paused:
            self.transport.resume_reading()

    def _take(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._session is not None:
            self._session.received(data)
            return
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE:
            self._await_head(self._bounds.head_timeout)
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _admit(self, request: h11.Request) -> bool:
        """Ask the guard, before any of the request's body is looked at."""
        self._answers_head = request.method == b"HEAD"
        refused = self._shared.guard.refusal(self._refusal, list(request.headers))
        if refused is not None:
            self._answer(refused)
            return False
        self._authenticated = True
        self._shared.admission.vouch(self)
        # uvicorn copies it into the state of the request.
        self.app_state = {DISPLACED: self._shared.admission.displaced}
        return True

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection if a whole request has come, and its answer hasn't begun.

        What is asked of the service may be the work of hours, which nobody does for one who may be gone.
        """
        if self._session is not None:
            self._session.lost()
            self.abort_later()
            return None
        if self.conn.for_service and self._is_at_work():
            self.transport.abort()
            return None
        whole = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
        if not whole or self.transport.is_closing() or self.cycle is None or self.cycle.response_started:
            return None
        self._half_closed = True
        self._cancel_timers()
        self._stall_timer = self.loop.call_later(_HALF_CLOSED, self.transport.abort)
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._session is not None:
            self._session.regulate()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self._bounds.stall_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._session is not None:
            self._session.resumed()
        if self._stall_timer is not None and not (self._half_closed or self._ending):
            self._stall_timer.cancel()
            self._stall_timer = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Requests that came along with the one before are still answered.
        if self._half_closed and self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self.transport.close()
        self._abort_later_if_closing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later_if_closing()

    def shutdown(self) -> None:
        """End the connection, after the answer that is under way."""
        if self.transport.is_closing():
            return
        if self._session is not None:
            self._session.shutdown()
        else:
            super().shutdown()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Open a websocket, if the app accepts it."""
        try:
            handshake = Handshake(
                event.method, event.http_version, self.headers, self._bounds.message_size, _log
            )
        except ApiError as error:
            self._answer(error.with_traceback(None))
            return
        self._session = WebSocketSession(handshake, self, self._bounds.ping_interval)
        scope = {
            **self.scope,
            "type": "websocket",
            "asgi": {"version": self.asgi_version, "spec_version": "2.4"},
            "scheme": "ws",
            "subprotocols": subprotocols(self.headers),
            "extensions": {"websocket.http.response": {}},
            "state": {**self.app_state, GONE: self._session.gone},
        }
        del scope["method"]
        task = self.loop.create_task(self._session.run(self.app, scope))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        early, _ = self.conn.trailing_data
        if early:
            self._session.received(early)

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def hold_back(self, held: bool) -> None:
        if held:
            self.flow.pause_reading()
        else:
            self.flow.resume_reading()

    def is_writable(self) -> bool:
        return not self.flow.write_paused

    async def drain(self) -> None:
        await self.flow.drain()

    def is_closing(self) -> bool:
        return self.transport.is_closing()

    def deny(self, status: int, headers: Headers, body: bytes) -> None:
        self._respond(status, headers, body)

    def close(self) -> None:
        self.transport.close()
        self._abort_later_if_closing()

    def abort_later(self) -> None:
        self._cancel_timers()
        self._ending = True
        self._stall_timer = self.loop.call_later(self._bounds.linger, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer what isn't HTTP; in JSON, as all else is."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # half an answer is out already
            return
        self._answer(ApiError("http_invalid", "the request is not HTTP/1.1, or its head is too large"))

    def _should_upgrade(self) -> bool:
        """Whatever else may be asked for is ignored, as RFC 9110 (section 7.8) allows."""
        return self._shared.websockets and is_wanted(self.headers)

    def _answer(self, error: ApiError) -> None:
        """Answer in place of the app, and close."""
        if self.cycle is not None:
            # Whatever the app says now comes too late.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        response = error.response(flat=self.conn.for_service)
        self._respond(error.status, [*response.raw_headers, *SAFE_HEADERS], bytes(response.body))

    def _respond(self, status: int, headers: Headers, body: bytes) -> None:
        events = (
            h11.Response(status_code=status, headers=[*headers, CLOSE], reason=b""),
            h11.Data(data=b"" if self._answers_head else body),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()
        self._abort_later_if_closing()

    def _is_at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _reading_changed(self, paused: bool) -> None:
        """See that one who goes away is missed, even if nothing is read from it."""
        if not paused:
            self._shared.departures.forget(self._fd())
        elif self._session is not None or (self.conn.for_service and self._is_at_work()):
            self._shared.departures.watch(self._fd(), self.transport.abort)

    def _fd(self) -> int:
        descriptor: int = self.transport.get_extra_info("socket").fileno()
        return descriptor

    def _is_unread(self) -> bool:
        if self._session is not None:
            return self._session.peer_may_send
        return self.conn.their_state not in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)

    def _await_head(self, within: float) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(within, self.transport.abort)

    def _abort_later_if_closing(self) -> None:
        # A transport that is closed still waits for its peer to read what is left, however long.
        if self.transport.is_closing():
            self.abort_later()

    def _cancel_timers(self) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._stall_timer = None
