"""Sees for itself that the rules do what they are for.

The probes go to addresses that are set apart for documentation (RFC 5737, RFC 3849). Where the rules hold
none of their packets leaves.
"""

import errno
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from box_policy.gate.destination import Destination, original_destination
from box_policy.gate.egress import Egress
from box_policy.gate.reset import reset
from box_policy.sandbox.nft import DNS_PORT
from box_policy.sandbox.sidecar.errors import SidecarError
from box_policy.sandbox.sidecar.rules import DOCKER_RESOLVER, GATE_MARK

_ELSEWHERE: Final = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
_PORT: Final = 9
_QUESTION: Final = b"box-policy probe"
_PATIENCE: Final = 5.0
_MAX_STRANGERS: Final = 256
_NO_ROUTE: Final = (
    errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.EINVAL,
    errno.EAFNOSUPPORT,
)  # fmt: skip
"""What a connection comes to that no route would take out, either."""


@dataclass
class Probed:
    """What came to light."""

    strangers: list[socket.socket] = field(default_factory=list)
    """Connections that came meanwhile: they are the gate's to serve."""
    routes: set[str] = field(default_factory=set)
    """Families (``IPv4``, ``IPv6``) with a way out that the rules shut."""


def probe(tcp: Sequence[socket.socket], dns_udp: Sequence[socket.socket]) -> Probed:
    """Try each way out. The listening sockets must not be served yet.

    Raises:
        SidecarError: one of them is open, or not the gate's.
    """
    found = Probed()
    try:
        for listener in tcp:
            if _is_connection_redirected(listener, found):
                found.routes.add("IPv4" if listener.family == socket.AF_INET else "IPv6")
        for listener in dns_udp:
            _see_question_redirected(listener)
        for family in _ELSEWHERE:
            _see_datagram_refused(family)
        _see_mark()
    except BaseException:
        for sock in found.strangers:
            reset(sock)
        raise
    return found


def _is_connection_redirected(listener: socket.socket, found: Probed) -> bool:
    """False: there is no route, either."""
    elsewhere = _ELSEWHERE[listener.family]
    with socket.socket(listener.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
        code = client.connect_ex((elsewhere, _PORT))
        if code in _NO_ROUTE:
            return False
        if code not in (0, errno.EINPROGRESS):
            raise SidecarError(f"a connection to {elsewhere} failed: {errno.errorcode.get(code, code)}")
        deadline = time.monotonic() + _PATIENCE
        while _wait(listener, deadline):
            try:
                accepted, peer = listener.accept()
            except OSError:
                continue  # it has gone before it was taken
            accepted.setblocking(False)
            if peer[:2] != client.getsockname()[:2]:
                if len(found.strangers) < _MAX_STRANGERS:
                    found.strangers.append(accepted)
                else:
                    reset(accepted)
                continue
            with accepted:
                destination = original_destination(accepted)
            if destination != Destination(ip_address(elsewhere), _PORT):
                raise SidecarError(f"a connection to {elsewhere} came as one to {destination.address}")
            return True
    raise SidecarError(f"a connection to {elsewhere} did not come to the gate: other rules of this network?")


def _see_question_redirected(listener: socket.socket) -> None:
    elsewhere = _ELSEWHERE[listener.family]
    with socket.socket(listener.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
        if not _sent(client, elsewhere, DNS_PORT):
            return
        deadline = time.monotonic() + _PATIENCE
        while _wait(listener, deadline):
            # A real question that came within these microseconds is lost, and asked again.
            message, sender = listener.recvfrom(len(_QUESTION))
            if message == _QUESTION and sender[:2] == client.getsockname()[:2]:
                listener.sendto(message, sender)
                break
        if not _wait(client, deadline) or client.recv(len(_QUESTION)) != _QUESTION:
            raise SidecarError(
                f"a question to {elsewhere} did not come to the gate: other rules of this network?"
            )


def _see_datagram_refused(family: socket.AddressFamily) -> None:
    try:
        client = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    except OSError:
        return  # no IPv6
    with client:
        try:
            sent = _sent(client, _ELSEWHERE[family], _PORT)
        except PermissionError:
            return
        if sent:
            raise SidecarError(
                f"a datagram to {_ELSEWHERE[family]} was not refused: other rules of this network?"
            )


def _see_mark() -> None:
    """The gate's own sockets, and nobody else's, may reach what the rules keep from everybody."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as target:
        target.bind((DOCKER_RESOLVER, 0))
        port = target.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
            try:
                client.sendto(_QUESTION, (DOCKER_RESOLVER, port))
            except PermissionError:
                pass
            else:
                raise SidecarError(
                    f"a datagram to {DOCKER_RESOLVER} was not refused: other rules of this network?"
                )
        try:
            client = Egress(GATE_MARK).socket(socket.AF_INET, socket.SOCK_DGRAM)
        except PermissionError:
            raise SidecarError("--sidecar: can't mark its own traffic: needs CAP_NET_ADMIN") from None
        with client:
            try:
                client.sendto(_QUESTION, (DOCKER_RESOLVER, port))
            except PermissionError:
                raise SidecarError(
                    "--sidecar: its own traffic is refused: this network namespace has a user namespace "
                    "that knows the gate's user by another number, or has other rules"
                ) from None
        if not _wait(target, time.monotonic() + _PATIENCE):
            raise SidecarError("--sidecar: its own traffic does not arrive: other rules of this network?")


def _sent(client: socket.socket, address: str, port: int) -> bool:
    """False: there is no route. PermissionError if it is refused."""
    try:
        client.connect((address, port))
    except OSError as error:
        if error.errno in _NO_ROUTE:
            return False
        raise
    try:
        client.send(_QUESTION)
    except PermissionError:
        raise
    except OSError as error:
        if error.errno in _NO_ROUTE:
            return False
        raise
    return True


def _wait(sock: socket.socket, deadline: float) -> bool:
    """Wait until there is something to take. False if it takes too long, all of it together."""
    left = deadline - time.monotonic()
    return left > 0 and bool(select.select([sock], [], [], left)[0])
