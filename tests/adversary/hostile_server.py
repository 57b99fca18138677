"""A name server that answers whatever a test wants, byte by byte."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from tests.lab import plan

HERE: Final = "127.0.0.1"
_ELSEWHERE: Final = "127.0.0.2"

type Answers = Callable[[bytes], Sequence[bytes]]


class HostileServer:
    """It is on the gate's own host, where the gate is told to ask."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes, tuple[str, int]]] = []
        """Transport, message and peer."""
        self.over_udp: Answers = lambda _: []
        """The datagrams that answer a message."""
        self.elsewhere: Answers = lambda _: []
        """Datagrams sent before these from another address."""
        self.over_tcp: Answers = lambda _: []
        """What is written back, as it is; then the connection ends."""

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), (HERE, plan.DNS_PORT))
        self._other, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, (_ELSEWHERE, plan.DNS_PORT)
        )
        self._tcp = await asyncio.start_server(self._serve, HERE, plan.DNS_PORT)

    async def close(self) -> None:
        self._udp.close()
        self._other.close()
        self._tcp.close()

    def received(self, data: bytes, peer: tuple[str, int]) -> None:
        self.asked.append(("udp", data, peer))
        for answer in self.elsewhere(data):
            self._other.sendto(answer, peer)
        for answer in self.over_udp(data):
            self._udp.sendto(answer, peer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        self.asked.append(("tcp", data, writer.get_extra_info("peername")))
        for answer in self.over_tcp(data):
            writer.write(answer)
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: HostileServer) -> None:
        self._server = server

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.received(data, addr)
