"""The upstream connections that one HTTP connection of a box has open, and whose they are."""

import asyncio
import errno
import os
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from mitmproxy.connection import ConnectionState, Server

from box_policy.gate.claim import Claim
from box_policy.gate.descriptors import Descriptors
from box_policy.gate.dial import MAX_TRIED
from box_policy.gate.egress import Egress
from box_policy.gate.own_addresses import address_family
from box_policy.gate.readers import CountingReader
from box_policy.gate.reset import reset, reset_now
from box_policy.policy.addresses import Address
from box_policy.policy.reasons import Reason

_MAX_OPEN: Final = 4
"""A request may name another host than the one before; but each costs a descriptor."""


@dataclass(slots=True)
class _Upstream:
    claim: Claim
    """Of the last request that it served."""
    writer: asyncio.StreamWriter
    reader: CountingReader


class Upstreams:
    """Where the request under way may go, and the connections that may be used again."""

    def __init__(self, descriptors: Descriptors, egress: Egress) -> None:
        self._descriptors = descriptors
        self._egress = egress
        self.allowed: list[Address] = []
        """By the verdict on the request under way."""
        self.dialled: Address | None = None
        """Where it goes, or is to go."""
        self._dialling: socket.socket | None = None  # until there is a writer for it
        self._open: dict[Server, _Upstream] = {}
        self._received = 0
        self._kept: CountingReader | None = None
        """Of the connection in use, if it had served another request before."""
        self._kept_count = 0

    @property
    def received(self) -> int:
        """Bytes that have come from all of them so far."""
        return self._received + sum(upstream.reader.count for upstream in self._open.values())

    async def dial(
        self, wanted: str, port: int, patience: float, dial_timeout: float
    ) -> tuple[socket.socket | None, str]:
        """Connect to an allowed address, or if that fails to another. Until :meth:`add` a new policy may end
        what comes of it. Returns why, if nothing did. ``patience``: seconds for each address;
        ``dial_timeout``: after which no other is tried."""
        self._kept = None
        addresses = sorted(self.allowed, key=lambda address: str(address) != wanted)[:MAX_TRIED]
        if not addresses or str(addresses[0]) != wanted:
            return None, "no verdict"
        error = ""
        loop = asyncio.get_running_loop()
        last_begin = loop.time() + dial_timeout
        for address in addresses:
            if error and loop.time() >= last_begin:
                break
            if address not in self.allowed:
                continue  # by a policy that came while another was tried
            self.dialled = address
            try:
                sock = self._egress.socket(address_family(address), socket.SOCK_STREAM)
            except OSError as failure:
                error = f"{address}: {failure.strerror}"
                continue
            # The first is the box's due; to keep more open is for times of plenty.
            if not (self._descriptors.plenty if self._open else self._descriptors.enough)(sock.fileno()):
                sock.close()
                return None, f"{address}: {os.strerror(errno.EMFILE)}"
            self._dialling = sock
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                async with asyncio.timeout(patience):
                    await loop.sock_connect(sock, (str(address), port))
            except TimeoutError:
                error = f"{address}: timed out"
                sock.close()
            except OSError as failure:
                error = f"{address}: {failure.strerror}"
                sock.close()
            except BaseException:
                sock.close()
                raise
            else:
                if address in self.allowed:
                    return sock, ""
                error = Reason.POLICY_CHANGED
                reset(sock)
        self._dialling = None
        return None, error

    def narrow(self, claim: Claim) -> None:
        """Keep, of the allowed addresses, those that the box's policy in force still allows."""
        self.allowed = [address for address in self.allowed if claim.judge_again(address).allowed]

    def dials_on(self) -> bool:
        """Give up the address that is being dialled for another one. False if there is none."""
        if self._dialling is None or not self.allowed:
            return False
        self.stop_dialling()
        return True

    def stop_dialling(self) -> None:
        if self._dialling is not None:
            reset_now(self._dialling)

    def add(self, server: Server, claim: Claim, writer: asyncio.StreamWriter, reader: CountingReader) -> None:
        """It is open, and serves the request under way. The one that has been idle longest may have to go."""
        self._dialling = None
        self._open[server] = _Upstream(claim, writer, reader)
        while len(self._open) > _MAX_OPEN:
            oldest = next(iter(self._open))
            self._open[oldest].writer.close()
            self.remove(oldest)

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
        upstream = self._open[server] = self._open.pop(server)  # the last one used comes last
        upstream.claim = claim
        self._kept, self._kept_count = upstream.reader, upstream.reader.count

    def left_before_answering(self) -> bool:
        """The connection in use was kept from an earlier request, and its other end has closed it without a
        byte for this one. Whether to ask again is the client's to decide (RFC 9112 section 9.3.1)."""
        return self._kept is not None and self._kept.count == self._kept_count

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
