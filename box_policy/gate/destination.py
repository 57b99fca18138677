"""The address that a redirected connection was bound for, as the kernel's connection tracking knows it."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from box_policy.policy.addresses import Address

# <linux/netfilter_ipv4.h>, <linux/netfilter_ipv6/ip6_tables.h>
_SO_ORIGINAL_DST = 80
_IP6T_SO_ORIGINAL_DST = 80
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")


class Destination(NamedTuple):
    """A claim: the box chose it."""

    address: Address
    port: int


def original_destination(sock: socket.socket) -> Destination:
    """Where an accepted connection was bound for before it was redirected.

    The socket's own network namespace is asked, whichever the caller lives in. Raises OSError when the
    connection was not redirected and none is known.
    """
    if sock.family == socket.AF_INET:
        port, packed = _SOCKADDR_IN.unpack(
            sock.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
        )
        return Destination(IPv4Address(packed), port)
    port, packed = _SOCKADDR_IN6.unpack(
        sock.getsockopt(socket.IPPROTO_IPV6, _IP6T_SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
    )
    address = IPv6Address(packed)
    return Destination(address.ipv4_mapped or address, port)
