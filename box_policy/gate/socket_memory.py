"""What the kernel keeps for a socket."""

import socket
import struct
from typing import Final, Protocol

_SO_MEMINFO: Final = 55  # <asm-generic/socket.h>
_MEMINFO: Final = struct.Struct("9I")  # <linux/sock_diag.h>: SK_MEMINFO_*


SMALL: Final = 64 * 1024
"""Bytes in each queue of a socket that may not have more."""


class HasOptions(Protocol):
    """A socket, or what asyncio shows of one."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def socket_memory(sock: HasOptions) -> int:
    """Bytes that its queues take up, both ways, the kernel's own overhead included. 0 once it is closed."""
    try:
        received, _, _, _, _, queued, _, backlog, _ = _MEMINFO.unpack(
            sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
        )
    except OSError:
        return 0
    return int(received + queued + backlog)


def keep_small(sock: socket.socket, size: int = SMALL) -> None:
    """Have the kernel not enlarge its queues, of which each may hold that many bytes. (It adds as much again
    for its own use.)"""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, size)
