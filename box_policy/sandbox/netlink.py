"""Send netlink messages to the kernel and wait until each is acknowledged.

pyroute2 encodes the messages. Its own sockets run an event loop for each request, which took 12 ms
a box; one datagram and one read take less than one.
"""

import os
import socket
import struct
from collections.abc import Sequence

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_RECEIVE_SIZE = 64 * 1024


def transact(family: int, messages: Sequence[bytes]) -> None:
    """Send ``messages`` in one datagram to a netlink family of this network namespace.

    Every message that carries NLM_F_ACK is waited for. Raises OSError with the first error that the
    kernel reports, and the index of the message it is about.
    """
    numbered = [_with_sequence(message, index + 1) for index, message in enumerate(messages)]
    waiting = {index + 1 for index, message in enumerate(messages) if _HEADER.unpack_from(message)[2] & NLM_F_ACK}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family) as sock:
        sock.bind((0, 0))
        sock.send(b"".join(numbered))
        while waiting:
            data = sock.recv(_RECEIVE_SIZE)
            offset = 0
            while offset + _HEADER.size <= len(data):
                length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
                if kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", data, offset + _HEADER.size)
                    if code:
                        raise OSError(-code, f"netlink message {sequence - 1}: {os.strerror(-code)}")
                    waiting.discard(sequence)
                offset += max((length + 3) & ~3, _HEADER.size)


def _with_sequence(message: bytes, sequence: int) -> bytes:
    length, kind, flags, _, port = _HEADER.unpack_from(message)
    return _HEADER.pack(length, kind, flags, sequence, port) + message[_HEADER.size :]
