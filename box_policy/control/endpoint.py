"""Serves an ASGI app, the control API above all, on a unix socket or on a TCP address with a token."""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp
from uvicorn import Config
from uvicorn.server import ServerState

from box_policy.control.http.address import (
    ControlAddress,
    ControlError,
    InheritedAddress,
    ListeningAddress,
    TcpAddress,
    UnixAddress,
    parse_control_address,
)
from box_policy.control.http.admission import Admission
from box_policy.control.http.answers import Answering
from box_policy.control.http.departures import Departures
from box_policy.control.http.guard import Guard, check_token, peer_refusal
from box_policy.control.http.listening import BACKLOG, Listening
from box_policy.control.http.protocol import BODY_SLICE, Bounds, ControlProtocol, Shared
from box_policy.gate.network_namespace import netns_cookie

__all__ = [
    "Bounds",
    "ControlAddress",
    "ControlError",
    "Endpoint",
    "InheritedAddress",
    "ListeningAddress",
    "TcpAddress",
    "UnixAddress",
    "parse_control_address",
]

_ACCEPTED_AT_ONCE: Final = 8
"""Connections that one turn of the loop accepts; to set one up takes about 0.2 ms."""
_GRACE: Final = 0.3
"""Seconds for answers that are under way when the endpoint closes."""


class Endpoint:
    """An HTTP/1.1 server for one app, in the running loop.

    Not uvicorn's own server, only its protocol: that server takes the process's signals, polls ten times
    a second, and waits without end for streams.
    """

    def __init__(
        self,
        address: ListeningAddress,
        app: ASGIApp,
        *,
        token: str | None = None,
        foreign: Callable[[int], bool] | None = None,
        bounds: Bounds | None = None,
        websockets: bool = False,
    ) -> None:
        """Take what is to be served, and to whom.

        Args:
            token: what each request must carry; needed on TCP.
            websockets: whether the app is asked for websockets too; where not, who asks for one is answered
                as if it hadn't.
            foreign: says whether a network namespace, by its SO_NETNS_COOKIE, is a box's. Processes in it
                are not served on a unix socket.

        Raises:
            ControlError: the token is missing, or too weak.
        """
        if token is not None:
            check_token(token)
        elif isinstance(address, TcpAddress):
            raise ControlError(
                f"{address}: a control endpoint on TCP needs a token; a unix socket needs none"
            )
        self.address = address
        """Where it listens; the port is known from the start on."""
        self._app = app
        self._token = token
        self._foreign = foreign
        self._bounds = bounds or Bounds()
        self._websockets = websockets
        self._departures = Departures()
        self._state = ServerState()
        self._listening: Listening | None = None
        self._server: asyncio.Server | None = None
        self._closed = asyncio.Event()

    def start(self) -> None:
        """Listen. Who connects from now on is answered as soon as :meth:`serve` runs.

        Raises:
            ControlError: with what to do.
        """
        self._listening = Listening(self.address)
        self.address = self._listening.address
        if self._foreign is not None and not isinstance(self.address, TcpAddress):
            try:
                netns_cookie(self._listening.socket)
            except OSError:
                self._listening.close()
                raise ControlError(
                    "this kernel doesn't tell boxes from others on a unix socket (Linux 5.14 does): "
                    "use a TCP address on loopback, with a token"
                ) from None

    async def serve(self) -> None:
        """Answer requests until :meth:`close`. Starts first, if that hasn't been done."""
        if self._closed.is_set():
            return
        if self._listening is None:
            self.start()
        if self._listening is None:
            raise RuntimeError("not listening")
        config = Config(
            Answering(self._app),
            http=ControlProtocol,
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=self._bounds.idle_timeout,
        )
        config.load()
        shared = Shared(
            config=config,
            state=self._state,
            bounds=self._bounds,
            guard=Guard(self.address, self._token),
            admission=Admission(self._bounds.connections),
            peer_refusal=self._peer_refusal,
            websockets=self._websockets,
            departures=self._departures,
            closed=self._closed,
            scratch=bytearray(BODY_SLICE),
        )
        self._server = await asyncio.get_running_loop().create_server(
            lambda: ControlProtocol(shared), sock=self._listening.socket, backlog=_ACCEPTED_AT_ONCE
        )
        if not self._closed.is_set():
            # asyncio takes the one number for both, and has just told it to the kernel.
            self._listening.socket.listen(BACKLOG)
        if self._closed.is_set():
            self._server.close()
        await self._closed.wait()

    async def close(self) -> None:
        """Listen no more, and end every connection, in less than a second. Repeating it does nothing.

        Streams end by themselves if what they follow was closed before.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        if self._server is not None and self._listening is not None:
            # asyncio's server forgets, open, a connection that it has accepted but not yet set up when it is
            # closed: let it come to that, and accept no more meanwhile.
            asyncio.get_running_loop().remove_reader(self._listening.socket)
            await asyncio.sleep(0)
            self._server.close()
        if self._listening is not None:
            self._listening.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        await _settled(self._state.tasks, _GRACE)
        for connection in list(self._state.connections):
            connection.transport.abort()
        await _settled(self._state.tasks, _GRACE)
        for task in list(self._state.tasks):
            task.cancel()
        self._departures.close()

    def _peer_refusal(self, sock: socket.socket) -> str | None:
        return None if isinstance(self.address, TcpAddress) else peer_refusal(sock, self._foreign)


async def _settled(tasks: set[asyncio.Task[None]], within: float) -> None:
    if tasks:
        await asyncio.wait(set(tasks), timeout=within)
