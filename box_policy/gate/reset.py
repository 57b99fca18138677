"""Ending a TCP connection with RST, so that nothing still queued, in either direction, is delivered."""

import ctypes
import socket
import struct
from typing import Final

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_UNSPECIFIED: Final = struct.pack("=H14x", socket.AF_UNSPEC)
_libc: Final = ctypes.CDLL(None)


def reset_on_close(sock: socket.socket) -> None:
    """Have it end with RST, whoever closes it."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    except OSError:
        pass  # already broken, or closed


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    try:
        reset_on_close(sock)
    finally:
        sock.close()


def reset_now(sock: socket.socket) -> None:
    """Send RST at once, and leave it to its owner to close the socket. One that is being connected gives up.

    asyncio closes a transport's socket in a later turn of the loop. connect(2) to ``AF_UNSPEC`` disconnects
    without closing; the standard library has no address of that family.
    """
    if sock.fileno() >= 0:
        _libc.connect(sock.fileno(), _UNSPECIFIED, len(_UNSPECIFIED))
