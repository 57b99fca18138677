"""The upstream connections that one HTTP connection of a box has open, and whose they are."""

import asyncio
from ipaddress import ip_address

from mitmproxy.connection import ConnectionState, Server

from box_policy.gate.claim import Claim
from box_policy.gate.reset import reset_now
from box_policy.policy.addresses import Address


class Upstreams:
    """Each with the claim of the last request that it served."""

    def __init__(self) -> None:
        self._open: dict[Server, tuple[Claim, asyncio.StreamWriter]] = {}

    def add(self, server: Server, claim: Claim, writer: asyncio.StreamWriter) -> None:
        self._open[server] = (claim, writer)

    def remove(self, server: Server) -> None:
        del self._open[server]

    def find(self, address: Address, port: int) -> Server | None:
        """One that can be used again."""
        for server in self._open:
            if server.address == (str(address), port) and server.state is ConnectionState.OPEN:
                return server
        return None

    def use(self, server: Server, claim: Claim) -> None:
        """It is to serve another request."""
        self._open[server] = (claim, self._open[server][1])

    def judge_again(self) -> None:
        """Reset those that the box's policy in force does not allow."""
        for server, (claim, writer) in list(self._open.items()):
            if server.address is None or not claim.judge_again(ip_address(server.address[0])).allowed:
                reset_now(writer.get_extra_info("socket"))
                writer.transport.abort()
