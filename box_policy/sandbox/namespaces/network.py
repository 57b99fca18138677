"""A box's network, made from inside its new network namespace: lo, the rules, and the listeners.

The netlink messages are encoded beforehand, in ``network_messages``: this module is part of every box
and stays small.
"""

import socket
from pathlib import Path
from typing import NamedTuple

from box_policy.sandbox import netlink
from box_policy.sandbox.launcher import Listeners

ADDRESS_4 = "10.0.2.15"
"""The box's own address. glibc's AI_ADDRCONFIG does not count loopback addresses: with none but
127.0.0.1, getaddrinfo() would ask for nothing."""
ADDRESS_6 = "fd00:2::15"
NAMESERVER = "10.0.2.3"
"""Nobody has this address; a question to any address arrives at the gate."""

TCP_PORT = 61001
"""Where the listeners are, on 127.0.0.1 and ::1. Fixed, so that the rules are encoded once; past the
default range of source ports, so that a box's own connections never meet them."""
DNS_PORT = 61053
BACKLOG = 4096


class NetworkMessages(NamedTuple):
    """Encoded netlink messages."""

    loopback_4: bytes
    """lo up, with the box's IPv4 address and default route."""
    loopback_6: bytes
    """The box's IPv6 address and default route."""
    rules: bytes


def write_settings() -> list[socket.AddressFamily]:
    """Make the kernel settings of this network namespace; return the address families that it has.

    OSError if the kernel refuses. It takes a writable /proc/sys, so the host's file system.
    """
    _write_sysctl("ipv4/ip_unprivileged_port_start", "0")
    # Per-connection timestamp offsets make the kernel refuse about 1 % of reused ports in TIME_WAIT
    # behind a redirect; the sender then waits for a retransmit.
    _write_sysctl("ipv4/tcp_timestamps", "2")
    return address_families()


def address_families() -> list[socket.AddressFamily]:
    """Those that the network namespace of this thread has."""
    return [socket.AF_INET, *([socket.AF_INET6] if _has_ipv6() else [])]


def make_network(encoded: NetworkMessages, families: list[socket.AddressFamily]) -> Listeners:
    """Set up the network namespace that this process is in. It touches no file.

    OSError if the kernel refuses, with ``filename`` naming the part that failed.
    """
    loopback = encoded.loopback_4 + (encoded.loopback_6 if socket.AF_INET6 in families else b"")
    _transact("loopback interface", netlink.NETLINK_ROUTE, loopback)
    listeners = _listen(families)
    try:
        _transact("nf_tables", netlink.NETLINK_NETFILTER, encoded.rules)
    except OSError:
        listeners.close()
        raise
    return listeners


def _transact(part: str, family: int, messages: bytes) -> None:
    try:
        netlink.transact(family, messages)
    except OSError as error:
        error.filename = part
        raise


def _has_ipv6() -> bool:
    # Absent: the kernel has none. 1: switched off for new namespaces.
    try:
        return Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").read_text() == "0\n"
    except OSError:
        return False


def _write_sysctl(name: str, value: str) -> None:
    with open(f"/proc/sys/net/{name}", "w") as file:
        file.write(value)


def _listen(families: list[socket.AddressFamily]) -> Listeners:
    made: list[socket.socket] = []

    def bound(family: socket.AddressFamily, kind: socket.SocketKind, port: int) -> socket.socket:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        made.append(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", port))
        if kind == socket.SOCK_STREAM:
            # Accepted sockets inherit it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.listen(BACKLOG)
        return sock

    try:
        return Listeners(
            tcp=tuple(bound(family, socket.SOCK_STREAM, TCP_PORT) for family in families),
            dns_udp=tuple(bound(family, socket.SOCK_DGRAM, DNS_PORT) for family in families),
            dns_tcp=tuple(bound(family, socket.SOCK_STREAM, DNS_PORT) for family in families),
        )
    except OSError as error:
        for sock in made:
            sock.close()
        error.filename = "listeners"
        raise
