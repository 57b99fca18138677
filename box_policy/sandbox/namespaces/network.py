"""A box's network, made from inside its new network namespace: lo, the rules, and the listeners."""

import functools
import socket
from pathlib import Path

from pyroute2.netlink import NETLINK_ROUTE
from pyroute2.netlink.rtnl import RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from box_policy.sandbox import netlink, rules
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

_LOOPBACK_INDEX = 1
_IFF_UP = 1
_IFA_F_NODAD = 2
_RT_TABLE_MAIN = 254
_RTPROT_STATIC = 4
_RT_SCOPE_UNIVERSE = 0
_RT_SCOPE_LINK = 253
_RTN_UNICAST = 1


def make_network() -> Listeners:
    """Set up the network namespace that this process is in.

    OSError if the kernel refuses, with ``filename`` naming the part that failed.
    """
    families = [socket.AF_INET, *([socket.AF_INET6] if _has_ipv6() else [])]
    _write_sysctl("ipv4/ip_unprivileged_port_start", "0")
    # Per-connection timestamp offsets make the kernel refuse about 1 % of reused ports in TIME_WAIT
    # behind a redirect; the sender then waits for a retransmit.
    _write_sysctl("ipv4/tcp_timestamps", "2")
    try:
        netlink.transact(NETLINK_ROUTE, _loopback_messages(tuple(families)))
    except OSError as error:
        error.filename = "network"
        raise
    listeners = _listen(families)
    try:
        rules.install(TCP_PORT, DNS_PORT)
    except OSError as error:
        listeners.close()
        error.filename = "nf_tables"
        raise
    return listeners


def encode_ahead() -> None:
    """Encode every netlink message now, so that processes forked from this one need not."""
    rules.messages(TCP_PORT, DNS_PORT)
    _loopback_messages((socket.AF_INET, socket.AF_INET6))
    _loopback_messages((socket.AF_INET,))


def _has_ipv6() -> bool:
    # Absent: the kernel has none. 1: switched off for new namespaces.
    try:
        return Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").read_text() == "0\n"
    except OSError:
        return False


def _write_sysctl(name: str, value: str) -> None:
    with open(f"/proc/sys/net/{name}", "w") as file:
        file.write(value)


def _encoded(message: ifinfmsg | ifaddrmsg | rtmsg, kind: int, flags: int = 0) -> bytes:
    message["header"]["type"] = kind
    message["header"]["flags"] = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK | flags
    message.encode()
    return bytes(message.data)


@functools.cache
def _loopback_messages(families: tuple[socket.AddressFamily, ...]) -> list[bytes]:
    link = ifinfmsg()
    link["index"] = _LOOPBACK_INDEX
    link["flags"] = link["change"] = _IFF_UP
    encoded = [_encoded(link, RTM_NEWLINK)]
    for family in families:
        own = ADDRESS_4 if family == socket.AF_INET else ADDRESS_6
        address = ifaddrmsg()
        address["family"] = family
        address["prefixlen"] = 32 if family == socket.AF_INET else 128
        address["flags"] = 0 if family == socket.AF_INET else _IFA_F_NODAD
        address["index"] = _LOOPBACK_INDEX
        address["attrs"] = [("IFA_LOCAL", own), ("IFA_ADDRESS", own)]
        encoded.append(_encoded(address, RTM_NEWADDR, netlink.NLM_F_CREATE))
        # Without a route connect() fails before the first hook. This one leads to lo, which is nowhere.
        route = rtmsg()
        route["family"] = family
        route["table"] = _RT_TABLE_MAIN
        route["proto"] = _RTPROT_STATIC
        route["scope"] = _RT_SCOPE_LINK if family == socket.AF_INET else _RT_SCOPE_UNIVERSE
        route["type"] = _RTN_UNICAST
        route["attrs"] = [("RTA_OIF", _LOOPBACK_INDEX), ("RTA_PREFSRC", own)]
        encoded.append(_encoded(route, RTM_NEWROUTE, netlink.NLM_F_CREATE))
    return encoded


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
