"""Send netlink messages to the kernel and wait until each is acknowledged.

pyroute2 encodes the messages. Its own sockets run an event loop for each request, which took 12 ms
a box; one datagram and one read take less than one.
"""

import os
import socket
import struct

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_RECEIVE_SIZE = 64 * 1024


def transact(family: int, messages: bytes) -> None:
    """Send ``messages``, one after the other, to a netlink family of this network namespace.

    Those that carry NLM_F_ACK are waited for. Raises OSError with the first error that the kernel
    reports and the index of the message that it is about.
    """
    request = bytearray(messages)
    waiting: set[int] = set()
    offset = index = 0
    while offset + _HEADER.size <= len(request):
        length, kind, flags, _, port = _HEADER.unpack_from(request, offset)
        _HEADER.pack_into(request, offset, length, kind, flags, index, port)
        if flags & NLM_F_ACK:
            waiting.add(index)
        offset += _aligned(length)
        index += 1
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family) as sock:
        sock.bind((0, 0))
        sock.send(request)
        while waiting:
            waiting -= _acknowledged(sock.recv(_RECEIVE_SIZE))


def _acknowledged(reply: bytes) -> set[int]:
    done = set()
    offset = 0
    while offset + _HEADER.size <= len(reply):
        length, kind, _, index, _ = _HEADER.unpack_from(reply, offset)
        if kind == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", reply, offset + _HEADER.size)
            if code:
                raise OSError(-code, f"netlink message {index}: {os.strerror(-code)}")
            done.add(index)
        offset += _aligned(length)
    return done


def _aligned(length: int) -> int:
    return max((length + 3) & ~3, _HEADER.size)
