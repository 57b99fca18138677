"""uvicorn's HTTP/1.1, with bounds for what it leaves open: slow heads, stalled readers, endless peers."""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from box_policy.control.http.answers import ApiError
from box_policy.control.http.guard import PEER_REFUSAL
from box_policy.control.http.pace import Pace

_log: Final = logging.getLogger(__name__)
_log.setLevel(logging.WARNING)  # uvicorn's code would also trace each connection


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one peer, or all of them, may cost. Times in seconds."""

    connections: int = 128
    head_timeout: float = 10
    """For a whole request head: the first from the connection's start, others from their first byte."""
    idle_timeout: int = 30
    """Between requests."""
    stall_timeout: float = 60
    """For a peer that doesn't read."""
    linger: float = 5
    """For a peer to take what is left of the last answer."""
    head_size: int = 64 * 1024
    """Bytes."""


class _Paced(logging.Filter):
    """Keeps strangers' mistakes from filling the log."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace(burst=10, per_second=0.2)

    def filter(self, record: logging.LogRecord) -> bool:
        return self._pace.allows()


_log.addFilter(_Paced())


class ControlProtocol(H11Protocol):
    """One connection to the control endpoint."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        bounds: Bounds,
        refusal: Callable[[socket.socket], str | None],
        closed: asyncio.Event,
    ) -> None:
        super().__init__(config, server_state, {}, asyncio.get_running_loop())
        self.logger = _log
        self.access_log = False
        self._bounds = bounds
        self._refusal = refusal
        self._closed = closed
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Accepted before the endpoint was closed, but only now told of.
        if self._closed.is_set() or len(self.connections) > self._bounds.connections:
            transport.abort()
            return
        # uvicorn copies it into the state of each request of this connection.
        self.app_state = {PEER_REFUSAL: self._refusal(transport.get_extra_info("socket"))}
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        elif self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self._bounds.stall_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._abort_later_if_closing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_later_if_closing()

    def shutdown(self) -> None:
        """End the connection, after the answer that is under way."""
        if not self.transport.is_closing():
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Answer what isn't HTTP; in JSON, as all else is."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # half an answer is out already
            return
        self._answer(ApiError("http_invalid", "the request is not HTTP/1.1, or its head is too large"))

    def _answer(self, error: ApiError) -> None:
        response = error.response()
        headers = [*response.raw_headers, (b"cache-control", b"no-store"), (b"connection", b"close")]
        output = self.conn.send(h11.Response(status_code=error.status, headers=headers, reason=b""))
        body = self.conn.send(h11.Data(data=bytes(response.body))), self.conn.send(h11.EndOfMessage())
        self.transport.write(b"".join(part or b"" for part in (output, *body)))
        self.transport.close()
        self._abort_later_if_closing()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._bounds.head_timeout, self.transport.abort)

    def _abort_later_if_closing(self) -> None:
        # A transport that is closed still waits for its peer to read what is left, however long.
        if self.transport.is_closing():
            self._cancel_timers()
            self._stall_timer = self.loop.call_later(self._bounds.linger, self.transport.abort)

    def _cancel_timers(self) -> None:
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._stall_timer = None
