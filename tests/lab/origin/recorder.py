"""Keeps what a packet socket shows."""

import socket
import struct
from collections.abc import Callable
from typing import Final

from tests.lab.origin.packets import SNAPSHOT, read_packet
from tests.lab.records import Packet

_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_KEPT: Final = 200_000
_AT_ONCE: Final = 1_000


class Recorder:
    """The packets of one tap since the last ``clear()``."""

    def __init__(self, tap: socket.socket, changed: Callable[[], None]) -> None:
        tap.setblocking(False)
        self.tap = tap
        self._changed = changed
        self._packets: list[Packet] = []
        self._lost = 0

    def readable(self) -> None:
        """Take in some of what waits; the event loop calls again for more."""
        self._take(_AT_ONCE)

    def packets(self) -> list[Packet]:
        """All packets sent before this call.

        RuntimeError if any had to be dropped: then none can be ruled out.
        """
        self._take(None)
        if self._lost:
            raise RuntimeError(f"the recorder has lost {self._lost} packets")
        return self._packets

    def clear(self) -> None:
        """Forget all packets sent before this call."""
        self._take(None)
        self._packets.clear()
        self._lost = 0

    def _take(self, limit: int | None) -> None:
        taken = 0
        while limit is None or taken < limit:
            try:
                data = self.tap.recv(SNAPSHOT)
            except BlockingIOError:
                break
            taken += 1
            packet = read_packet(data)
            if packet is None:
                continue
            if len(self._packets) < _KEPT:
                self._packets.append(packet)
            else:
                self._lost += 1
        # Reading the kernel's count of packets that found the queue full also sets it to zero.
        _, dropped = struct.unpack("II", self.tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self._lost += dropped
        if taken:
            self._changed()
