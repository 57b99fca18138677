"""Which addresses are this machine's own, asked of the kernel each time.

A box that could make the gate dial the gate's own host would reach every service there that trusts
its neighbours.
"""

import errno
import logging
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from box_policy.policy.addresses import Address

log = logging.getLogger(__name__)

# <linux/netlink.h>, <linux/rtnetlink.h>
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ROUTE: Final = struct.Struct(
    "=BBBBBBBBI"
)  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_REQUEST: Final = 1
_ERROR: Final = 2
_NEW_ROUTE: Final = 24
_GET_ROUTE: Final = 26
_DESTINATION: Final = 1
_UNICAST: Final = 1
_UNREACHABLE_TYPES: Final = (6, 7, 8)  # blackhole, unreachable, prohibit
_NO_ROUTE: Final = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EAFNOSUPPORT, errno.EACCES, errno.EINVAL)
"""Errors of a look-up that is answered: there is no way there, so it is not here either."""


class OwnAddresses:
    """``address in OwnAddresses()``: would a connection to that address end at this very host?

    The routing table knows, whatever makes an address local: an interface, or a route alone. A list of
    the interfaces' addresses would miss the second, and would have to be kept up to date. One question
    and one answer on a socket that is kept take some microseconds; pyroute2 takes milliseconds for it.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, IPv4Address | IPv6Address) or address.is_unspecified:
            return True  # Linux takes a connection to the unspecified address for one to itself
        try:
            return self._is_own(address)
        except (OSError, struct.error) as error:
            # The question stays open (no descriptors left, say), and an open question is a denial.
            log.warning("can't tell whether %s is one of this host's own addresses: %s", address, error)
            self.close()
            return True

    def close(self) -> None:
        """Let go of the socket; the next question makes a new one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _is_own(self, address: Address) -> bool:
        if self._socket is None:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
            )
            self._socket.settimeout(1)
        packed = address.packed
        route = _ROUTE.pack(address_family(address), len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
        attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _DESTINATION) + packed
        size = _HEADER.size + len(route) + len(attribute)
        self._socket.send(_HEADER.pack(size, _GET_ROUTE, _REQUEST, 0, 0) + route + attribute)
        answer = self._socket.recv(4096)
        _, kind, *_ = _HEADER.unpack_from(answer)
        if kind == _ERROR:
            (code,) = struct.unpack_from("=i", answer, _HEADER.size)
            if -code in _NO_ROUTE:
                return False
            raise OSError(-code, os.strerror(-code))
        if kind != _NEW_ROUTE:
            raise OSError(errno.EPROTO, "not a route")
        route_type = _ROUTE.unpack_from(answer, _HEADER.size)[7]
        return route_type != _UNICAST and route_type not in _UNREACHABLE_TYPES


def address_family(address: Address) -> socket.AddressFamily:
    """The socket family of an address."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6
