"""What the gate's host sends to one address, as its kernel sees it go."""

import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from tests.lab import bpf, network

SYN: Final = 0x02
RST: Final = 0x04
FIN: Final = 0x01

_LOAD_WORD: Final = 0x20
_LOAD_BYTE: Final = 0x30
_JUMP_EQUAL: Final = 0x15
_RETURN: Final = 0x06
_PACKET_TYPE: Final = 0xFFFFF004  # SKF_AD_OFF + SKF_AD_PKTTYPE
_OUTGOING: Final = 4
_DESTINATION_AT: Final = 16
_KEPT: Final = 128
"""Bytes of each packet: the headers, whatever their options."""

_SO_TIMESTAMPNS: Final = 35
_TIMESPEC: Final = struct.Struct("qq")
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6


class Segment(NamedTuple):
    """A TCP segment on its way out."""

    time: int
    """Nanoseconds since the epoch, from when the kernel handed it to the interface."""
    port: int
    """The gate's, which tells one connection from the others."""
    to_port: int
    flags: int
    payload: int
    """Bytes."""


class Tap:
    """Keeps every TCP segment that leaves for an IPv4 address by an interface of this namespace."""

    def __init__(self, interface: str, address: str) -> None:
        program: Sequence[bpf.Instruction] = (
            (_LOAD_BYTE, 0, 0, _PACKET_TYPE),
            (_JUMP_EQUAL, 0, 3, _OUTGOING),
            (_LOAD_WORD, 0, 0, _DESTINATION_AT),
            (_JUMP_EQUAL, 0, 1, int(IPv4Address(address))),
            (_RETURN, 0, 0, _KEPT),
            (_RETURN, 0, 0, 0),
        )
        self._sock = network.tap(interface, program)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.segments: list[Segment] = []

    def close(self) -> None:
        self._sock.close()

    def drain(self) -> None:
        """Take in what has been sent so far."""
        while True:
            try:
                packet, ancillary, _, _ = self._sock.recvmsg(_KEPT, 64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            ((_, _, stamp),) = ancillary
            seconds, nanoseconds = _TIMESPEC.unpack(stamp)
            self.segments.append(_segment(packet, seconds * 1_000_000_000 + nanoseconds))

    def lost(self) -> int:
        """How many packets had no room since the last call."""
        statistics = self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        _, drops = struct.unpack("II", statistics)
        return int(drops)


def _segment(packet: bytes, time: int) -> Segment:
    (total,) = struct.unpack_from("!H", packet, 2)
    header = (packet[0] & 15) * 4
    port, to_port = struct.unpack_from("!HH", packet, header)
    offset = (packet[header + 12] >> 4) * 4
    return Segment(time, port, to_port, packet[header + 13], total - header - offset)
