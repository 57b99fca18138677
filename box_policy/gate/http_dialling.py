"""mitmproxy's handler of a client's connection, which dials judged addresses and nothing else."""

import asyncio
import logging
import socket
import time
from typing import TYPE_CHECKING

from mitmproxy import http
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, events, server_hooks
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.server import ConnectionIO

from box_policy.gate.claim import Claim, HandedOver
from box_policy.gate.descriptors import Descriptors
from box_policy.gate.egress import Egress
from box_policy.gate.http_upstreams import Upstreams
from box_policy.gate.limits import Limits
from box_policy.gate.readers import CountingReader, GatedReader, Turn
from box_policy.gate.socket_memory import keep_small, socket_memory

if TYPE_CHECKING:
    from mitmproxy.master import Master
    from mitmproxy.proxy.mode_specs import ProxyMode

log = logging.getLogger(__name__)


class DiallingHandler(ProxyConnectionHandler):
    """Owns the sockets of one connection of a box, to the box and to upstreams.

    What is judged, and by whom, is not its business: it dials what is among the allowed addresses.
    """

    def __init__(
        self,
        master: "Master",
        mode: "ProxyMode",
        handed_over: HandedOver,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        limits: Limits,
        turn: Turn,
        roomy: bool,
        descriptors: Descriptors,
        egress: Egress,
    ) -> None:
        super().__init__(master, reader, writer, master.options, mode)  # type: ignore[no-untyped-call]
        self._claim = handed_over.claim
        self._limits = limits
        self._turn = turn
        self._roomy = roomy
        self._allowed_claim: Claim | None = None  # of the last request that was let through
        self._upstreams = Upstreams(descriptors, egress)
        self._writers = [writer]  # the client's, and behind it those of upstreams
        self._reader = GatedReader(reader, handed_over.received, turn)
        self.transports[self.client].reader = self._reader  # type: ignore[assignment]
        destination = handed_over.claim.destination
        context = self.layer.context
        context.client.sockname = context.server.address = (str(destination.address), destination.port)

    def buffered(self) -> int:
        """Bytes that are kept for it, whether in the kernel or here."""
        sockets = (writer.get_extra_info("socket") for writer in self._writers)
        written = sum(writer.transport.get_write_buffer_size() for writer in self._writers)
        return written + sum(socket_memory(sock) for sock in sockets if sock is not None)

    def failed(self) -> None:
        """What serves the connection has raised: end it."""
        raise NotImplementedError

    def cancelled(self) -> None:
        """A task that serves it was cancelled. If not because it ends, nobody would go on with it."""
        if self.client.state is not ConnectionState.CLOSED:
            self.failed()

    def _must_dial(self, flow: http.HTTPFlow) -> bool:
        data = flow.request.data
        return not any(
            str(address) == data.host and self._upstreams.find(address, data.port)
            for address in self._upstreams.allowed
        )

    async def open_connection(self, command: commands.OpenConnection) -> None:
        """Dial a judged address; any other is refused, whoever asks for it."""
        try:
            await self._open_connection(command)
        except Exception:
            log.exception("an HTTP connection failed in the gate and is closed")
            self.failed()

    async def _open_connection(self, command: commands.OpenConnection) -> None:
        server = command.connection
        hook = server_hooks.ServerConnectionHookData(client=self.client, server=server)
        try:
            await self.handle_hook(server_hooks.ServerConnectHook(hook))
            sock, error = (None, server.error) if server.error else await self._dial(server)
        except asyncio.CancelledError:
            self.cancelled()
            raise
        finally:
            self._reader.open.set()
        if sock is None:
            server.error = error or "no verdict"
            await self.handle_hook(server_hooks.ServerConnectErrorHook(hook))
            await self.server_event(events.OpenConnectionCompleted(command, server.error))
            return
        reader, writer = await asyncio.open_connection(sock=sock)
        server.timestamp_tcp_setup = time.time()
        server.state = ConnectionState.OPEN
        server.peername = writer.get_extra_info("peername")
        server.sockname = writer.get_extra_info("sockname")
        open_ones = [known for known in self._writers[1:] if known.get_extra_info("socket").fileno() >= 0]
        self._writers[1:] = [*open_ones, writer]
        upstream = CountingReader(reader, self._turn)
        self.transports[server] = ConnectionIO(asyncio.current_task(), upstream, writer)  # type: ignore[arg-type]
        self._upstreams.add(server, self._allowed_claim or self._claim, writer, upstream)
        await self.handle_hook(server_hooks.ServerConnectedHook(hook))
        await self.server_event(events.OpenConnectionCompleted(command, None))
        try:
            await self.handle_connection(server)
        finally:
            writer.close()  # mitmproxy doesn't, if it is cancelled twice
            self._upstreams.remove(server)
            server.timestamp_end = time.time()
            await self.handle_hook(server_hooks.ServerDisconnectedHook(hook))

    async def _dial(self, server: Server) -> tuple[socket.socket | None, str]:
        """Connect to the address that the layer asks for, or another of the same verdict."""
        wanted, port = (server.address or ("", 0))[:2]
        if port != self._claim.destination.port:
            return None, "no verdict"
        if not self._claim.box.new_connections.take(time.monotonic()):
            return None, "too many new connections at once"
        server.timestamp_start = time.time()
        sock, error = await self._upstreams.dial(
            wanted, port, self._limits.connect_timeout, self._limits.dial_timeout
        )
        if sock is not None:
            server.address = (str(self._upstreams.dialled), port)
            if not self._roomy:
                keep_small(sock)
        return sock, error
