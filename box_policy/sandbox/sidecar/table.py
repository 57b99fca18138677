"""The table in the kernel: how it is put there, and whether it is still as it was."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

from box_policy.sandbox import netlink
from box_policy.sandbox.sidecar.rules import TABLE, SidecarRules

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_FAMILY: Final = struct.Struct("=BBH")  # family, version, resource
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_ERROR: Final = 2
_DONE: Final = 3
_REQUEST: Final = 0x1
_DUMP: Final = 0x300
_INTERRUPTED: Final = 0x10
_NF_TABLES: Final = 10 << 8
_GET_TABLE: Final = _NF_TABLES | 1
_GET_CHAIN: Final = _NF_TABLES | 4
_GET_RULE: Final = _NF_TABLES | 7
_GET_GENERATION: Final = _NF_TABLES | 16
_NFPROTO_INET: Final = 1
_TABLE_NAME: Final = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE
_GENERATION_ID: Final = 1  # NFTA_GEN_ID
_RECEIVE_SIZE: Final = 128 * 1024
_TRIES: Final = 20
_PATIENCE: Final = 5.0

Messages = tuple[bytes, ...]


class Table:
    """Installs the rules in this network namespace, and tells whether they are what is in force."""

    def __init__(self, rules: SidecarRules) -> None:
        self._encoded = rules.encode()
        self._installed: Messages | None = None

    def install(self) -> None:
        """Put the rules in force, in place of a table of that name: in one transaction, so that there is no
        instant without them.

        Raises:
            OSError: the kernel refuses, or others change its rules all the time.
        """
        self._installed = None
        for _ in range(_TRIES):
            before = _generation()
            netlink.transact(netlink.NETLINK_NETFILTER, self._encoded)
            installed = _dump()
            # Nobody else has changed anything meanwhile: what was read is what was written.
            if installed is not None and _generation() == _next(before):
                self._installed = installed
                return
        raise OSError(errno.EBUSY, "the rules of this network namespace change all the time")

    def is_intact(self) -> bool:
        """Is what this installed what is there? OSError if the kernel doesn't tell."""
        for _ in range(_TRIES):
            found = _dump()
            if found is not None:
                return self._installed is not None and found == self._installed
        return False


def _next(generation: int) -> int:
    # net/netfilter/nf_tables_api.c, nf_tables_commit(): a generation is never 0.
    return (generation + 1) & 0xFFFFFFFF or 1


def _generation() -> int:
    """The number of the last transaction in this network namespace."""
    for message in _ask(_GET_GENERATION, 0):
        (_, kind) = _ATTRIBUTE.unpack_from(message)
        if kind == _GENERATION_ID:
            return int.from_bytes(message[_ATTRIBUTE.size : _ATTRIBUTE.size + 4])
    raise OSError(errno.EPROTO, "the kernel doesn't tell the generation of its rules")


def _dump() -> Messages | None:
    """All that the kernel says of the table, its chains and their rules. None if it changed meanwhile."""
    name = TABLE.encode() + b"\0"
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(name), _TABLE_NAME) + name
    wanted = attribute + bytes(-len(attribute) % 4)
    before = _generation()
    try:
        found = tuple(
            message
            for kind in (_GET_TABLE, _GET_CHAIN, _GET_RULE)
            for message in _ask(kind, _DUMP, wanted)
            if attribute in message
        )
    except InterruptedError:
        return None
    return found if _generation() == before else None


def _ask(kind: int, flags: int, attributes: bytes = b"") -> Iterator[bytes]:
    """The answers to a request, without their headers. InterruptedError if what they tell has changed."""
    family = _NFPROTO_INET if attributes else 0
    request = _FAMILY.pack(family, 0, 0) + attributes
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETLINK_NETFILTER
    ) as sock:
        sock.settimeout(_PATIENCE)
        sock.bind((0, 0))
        sock.send(_HEADER.pack(_HEADER.size + len(request), kind, _REQUEST | flags, 1, 0) + request)
        while True:
            answer = sock.recv(_RECEIVE_SIZE)
            offset = 0
            while offset + _HEADER.size <= len(answer):
                length, found, found_flags, _, _ = _HEADER.unpack_from(answer, offset)
                if found_flags & _INTERRUPTED:
                    raise InterruptedError
                if found == _ERROR:
                    (code,) = struct.unpack_from("=i", answer, offset + _HEADER.size)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                if found == _DONE:
                    return
                # Without the family header: that has the generation in it.
                yield answer[offset + _HEADER.size + _FAMILY.size : offset + length]
                if not flags & _DUMP:
                    return
                offset += max((length + 3) & ~3, _HEADER.size)
