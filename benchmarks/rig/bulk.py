"""Bulk data at both ends, as cheap as Linux makes it, and never waiting for ever."""

import os
import socket
import struct
import sys
import time
from typing import Final

_STALL_LIMIT: Final = 5
"""Seconds for which a socket may wait."""
_PAYLOAD_SIZE: Final = 8 * 1024 * 1024
_READ_SIZE: Final = 4 * 1024 * 1024

_buffer = bytearray(_READ_SIZE)


def limit_stalls(sock: socket.socket) -> None:
    """Make whatever waits too long on a blocking socket fail with BlockingIOError.

    Python's own timeouts would cost a poll(2) a call.
    """
    limit = struct.pack("ll", _STALL_LIMIT, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def payload() -> tuple[int, int]:
    """A file in memory to send with sendfile(2), which copies nothing: descriptor and size."""
    descriptor = os.memfd_create("payload")
    return descriptor, os.write(descriptor, os.urandom(_PAYLOAD_SIZE))


def swallow(sock: socket.socket, size: int = sys.maxsize, until: float = float("inf")) -> int:
    """Read so many bytes, or to the end, or until then (monotonic clock). Returns the number of bytes.

    With MSG_TRUNC the kernel drops them without a copy (tcp(7)).
    """
    left = size
    while left and time.monotonic() < until:
        count = sock.recv_into(_buffer, min(left, _READ_SIZE), socket.MSG_TRUNC)
        if not count:
            break
        left -= count
    return size - left
