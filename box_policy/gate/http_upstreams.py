"""The upstream connections that one HTTP connection of a box has open, and whose they are."""

import asyncio
from dataclasses import dataclass
from ipaddress import ip_address

from mitmproxy.connection import ConnectionState, Server

from box_policy.gate.claim import Claim
from box_policy.gate.readers import CountingReader
from box_policy.gate.reset import reset_now
from box_policy.policy.addresses import Address


@dataclass(slots=True)
class _Upstream:
    claim: Claim
    """Of the last request that it served."""
    writer: asyncio.StreamWriter
    reader: CountingReader


class Upstreams:
    """Those that may be used again."""

    def __init__(self) -> None:
        self._open: dict[Server, _Upstream] = {}
        self._received = 0

    @property
    def received(self) -> int:
        """Bytes that have come from all of them so far."""
        return self._received + sum(upstream.reader.count for upstream in self._open.values())

    def add(self, server: Server, claim: Claim, writer: asyncio.StreamWriter, reader: CountingReader) -> None:
        self._open[server] = _Upstream(claim, writer, reader)

    def remove(self, server: Server) -> None:
        upstream = self._open.pop(server, None)
        if upstream is not None:
            self._received += upstream.reader.count

    def has(self, server: Server) -> bool:
        return server in self._open

    def find(self, address: Address, port: int) -> Server | None:
        """One that is open to this address."""
        for server in self._open:
            if server.address == (str(address), port) and server.state is ConnectionState.OPEN:
                return server
        return None

    def use(self, server: Server, claim: Claim) -> None:
        """It is to serve another request."""
        self._open[server].claim = claim

    def judge_again(self) -> None:
        """Reset those that the box's policy in force does not allow."""
        for server, upstream in list(self._open.items()):
            if (
                server.address is None
                or not upstream.claim.judge_again(ip_address(server.address[0])).allowed
            ):
                reset_now(upstream.writer.get_extra_info("socket"))
                upstream.writer.transport.abort()
                self.remove(server)
