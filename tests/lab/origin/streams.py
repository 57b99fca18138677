"""Byte streams over accepted connections: recorded as they come, plain or under TLS."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from tests.lab.origin.certificates import Certificates
from tests.lab.origin.journal import Journal
from tests.lab.records import Connection

_CHUNK: Final = 256 << 10
_TURNS: Final = 5


class Stream(Protocol):
    """What a service talks through."""

    connection: Connection

    async def read(self) -> bytes:
        """The bytes that have come, at least one; none at the end."""

    async def write(self, data: bytes) -> None:
        """Send all of it."""

    async def finish(self) -> None:
        """Send the end of the stream."""


type Service = Callable[[Stream], Awaitable[None]]


class PlainStream:
    """A TCP connection."""

    def __init__(
        self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connection = connection
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        return await self._reader.read(_CHUNK)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def finish(self) -> None:
        if self._writer.can_write_eof():
            self._writer.write_eof()
        await self._writer.drain()


class TlsStream:
    """The server's side of TLS on a TCP connection.

    asyncio's own TLS would take the connection away from the protocol that records its bytes.
    """

    def __init__(self, stream: PlainStream, certificates: Certificates) -> None:
        self.connection = stream.connection
        self._stream = stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = certificates.accept(self._incoming, self._outgoing, self._named)

    async def handshake(self) -> None:
        """Raises ssl.SSLError, with the alert sent, if the client's side is wrong."""
        await self._do(self._tls.do_handshake)
        self.connection.tls = True
        self.connection.alpn = self._tls.selected_alpn_protocol()

    async def read(self) -> bytes:
        try:
            return await self._do(lambda: self._tls.read(_CHUNK))
        except ssl.SSLZeroReturnError:
            return b""

    async def write(self, data: bytes) -> None:
        await self._do(lambda: self._tls.write(data))

    async def finish(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # the client's close_notify hasn't come; nobody waits for it
        await self._stream.write(self._outgoing.read())
        await self._stream.finish()

    def _named(self, name: str | None) -> None:
        self.connection.sni = name

    async def _do[T](self, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                await self._stream.write(self._outgoing.read())
                data = await self._stream.read()
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            finally:
                if self._outgoing.pending:
                    await self._stream.write(self._outgoing.read())


class Acceptor:
    """Serves connections and keeps hold of the open ones."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._open: set[_Recorded] = set()

    async def listen(self, port: int, service: Service, certificates: Certificates | None = None) -> None:
        """Serve a port on every address of both families."""
        loop = asyncio.get_running_loop()
        sock = socket.create_server(
            ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096, reuse_port=False
        )
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        await loop.create_server(
            lambda: _Recorded(self._journal, self._open, service, certificates), sock=sock
        )

    async def reset(self) -> None:
        """Cut all connections, by RST."""
        # Those that wait to be accepted get their protocol within a few turns of the loop.
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        for protocol in list(self._open):
            protocol.abort()
        while self._open:
            await asyncio.sleep(0)


class _Recorded(asyncio.StreamReaderProtocol):
    """Notes what a connection brings when it comes, whatever the service makes of it and when."""

    def __init__(
        self,
        journal: Journal,
        peers: "set[_Recorded]",
        service: Service,
        certificates: Certificates | None,
    ) -> None:
        super().__init__(asyncio.StreamReader(limit=_CHUNK), self._serve)
        self._journal = journal
        self._peers = peers
        self._service = service
        self._certificates = certificates
        self._connection: Connection | None = None
        self._accepted: asyncio.Transport | None = None
        self._serving: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection = self._journal.accepted(transport.get_extra_info("socket"))
        assert isinstance(transport, asyncio.Transport)
        self._accepted = transport
        self._peers.add(self)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._connection:
            self._journal.received(self._connection, data)
        super().data_received(data)

    def eof_received(self) -> bool | None:
        if self._connection:
            self._journal.closed(self._connection, "eof")
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._peers.discard(self)
        if self._connection and isinstance(exc, ConnectionResetError):
            self._journal.closed(self._connection, "reset")
        super().connection_lost(exc)

    def abort(self) -> None:
        """Cut the connection."""
        if self._serving:
            self._serving.cancel()
        if transport := self._accepted:
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving = asyncio.current_task()
        assert self._connection
        stream = PlainStream(self._connection, reader, writer)
        try:
            if self._certificates is None:
                await self._service(stream)
            else:
                encrypted = TlsStream(stream, self._certificates)
                await encrypted.handshake()
                self._journal.changed()
                await self._service(encrypted)
        except (OSError, asyncio.CancelledError):
            pass  # the client's doing, or reset(): the record says what came (ssl.SSLError is an OSError)
        except Exception as error:
            self._journal.fault(f"{type(error).__name__}: {error}")
        finally:
            writer.close()
