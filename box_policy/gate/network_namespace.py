"""Which network namespace a socket belongs to."""

import socket
import struct
from typing import Final

_SO_NETNS_COOKIE: Final = 71  # <asm-generic/socket.h>, Linux 5.14
_COOKIE: Final = struct.Struct("=Q")


def netns_cookie(sock: socket.socket) -> int:
    """The network namespace that a socket was made in, as a number that is never given again.

    Of a unix socket that was accepted it is the client's: the kernel makes that socket on the client's
    side of connect(2).

    Raises:
        OSError: the kernel doesn't tell (before Linux 5.14).
    """
    (cookie,) = _COOKIE.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size))
    return int(cookie)
