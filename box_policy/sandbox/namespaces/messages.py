"""One JSON object a datagram, with descriptors beside it: what caller, zygote and box say to each other.

All sockets are AF_UNIX SOCK_SEQPACKET: a datagram arrives whole or not at all, and end of file is seen.
"""

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

LIMIT = 128 * 1024
"""Bytes of one message. A socket's default send buffer (net.core.wmem_default, 208 KiB) takes one whole."""
MAX_DESCRIPTORS = 16
_DESCRIPTOR = array.array("i")

Message = dict[str, Any]


class MessageError(Exception):
    """A datagram that is no message: not one JSON object, too long, or with descriptors missing."""


class DescriptorsLostError(MessageError):
    """A message that came without its descriptors: this process has no room for more."""

    def __init__(self, message: Message) -> None:
        super().__init__("truncated: descriptors are missing")
        self.message = message


def encode(message: Message) -> bytes:
    """The bytes of a message; MessageError if they are over the limit."""
    # ASCII escapes carry file names that are not UTF-8 (lone surrogates) through unchanged.
    data = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(data) > LIMIT:
        raise MessageError(f"{len(data)} bytes, the limit is {LIMIT}")
    return data


def ancillary(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """The control data that sends ``fds``."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one message. OSError if the other side is gone, or (not blocking) if it reads too slowly."""
    sock.sendmsg([encode(message)], ancillary(fds), socket.MSG_NOSIGNAL)


def send_last(sock: socket.socket, message: Message) -> None:
    """Send a message before giving up. That nobody is there to read it changes nothing."""
    try:
        send(sock, message)
    except OSError:
        pass


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors (close-on-exec, owned by the caller); None at end of file.

    MessageError for anything else than a message; descriptors that came are closed.
    """
    # Not socket.recv_fds(): it ignores its flags, and the descriptors would outlive an exec().
    space = socket.CMSG_LEN(MAX_DESCRIPTORS * _DESCRIPTOR.itemsize)
    data, controls, flags, _ = sock.recvmsg(LIMIT, space, socket.MSG_CMSG_CLOEXEC)
    fds = [fd for level, kind, content in controls for fd in _descriptors(level, kind, content)]
    if not data:
        close_all(fds)
        return None
    try:
        if flags & socket.MSG_TRUNC:
            raise MessageError("truncated")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise MessageError("not a JSON object")
        if flags & socket.MSG_CTRUNC:
            raise DescriptorsLostError(message)
    except (ValueError, RecursionError) as error:
        close_all(fds)
        raise MessageError(f"not JSON: {error}") from None
    except MessageError:
        close_all(fds)
        raise
    return message, fds


def _descriptors(level: int, kind: int, content: bytes) -> list[int]:
    if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
        return []
    fds = array.array("i")
    fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return fds.tolist()


def close_all(fds: Sequence[int]) -> None:
    """Close each descriptor."""
    for fd in fds:
        os.close(fd)
