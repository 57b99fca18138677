"""The rig's load generator: obeys orders from stdin, one JSON object a line. ``python -m benchmarks.rig.box``

Built to cost little: a connection is five system calls.
"""

import os
import socket
import time
from collections import deque

from benchmarks.rig import plan
from benchmarks.rig.bulk import limit_stalls, payload, swallow
from benchmarks.rig.orders import LoadError, obey
from tests.lab.namespace import unshare_network


class Box:
    """Each public method is an order; what it returns is the answer."""

    def __init__(self) -> None:
        self._kept: list[socket.socket] = []
        self._payload, self._payload_size = payload()

    def connections(self, target: str, parallel: int, seconds: float) -> dict[str, float]:
        """Open connections for a while, so many at a time. Each ends when the origin has closed it."""
        hello = plan.hello(plan.ANSWER)
        address = (target, plan.PORT)
        waiting: deque[socket.socket] = deque()

        def begin() -> None:
            # Blocking, and yet it waits for nobody: over a veth pair the kernel has done the handshake by the
            # time that connect() would begin to wait.
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.connect(address)
            sock.send(hello)
            waiting.append(sock)

        count = 0
        started = time.monotonic()
        until = started + seconds
        for _ in range(parallel):
            begin()
        while waiting:
            # They end about in the order in which they began, so the oldest is waited for, and no poller is
            # needed. To be read here means: to the end.
            sock = waiting.popleft()
            if sock.recv(16, socket.MSG_WAITALL) != b"1":
                raise LoadError("a connection was refused")
            sock.close()
            count += 1
            if time.monotonic() < until:
                begin()
        return {"connections": count, "seconds": time.monotonic() - started}

    def keep(self, target: str, count: int) -> dict[str, float]:
        """Open connections that stay, idle."""
        for _ in range(count):
            sock = self._open(target, plan.KEEP)
            if sock.recv(16) != b"1":
                raise LoadError("a connection was refused")
            self._kept.append(sock)
        return {}

    def release(self, target: str) -> dict[str, float]:
        """End those that stay."""
        with self._open(target, plan.RELEASE) as order:
            order.recv(1)
        for sock in self._kept:
            if sock.recv(16):
                raise LoadError("an idle connection was not idle")
            sock.close()
        self._kept.clear()
        return {}

    def down(self, target: str, seconds: float) -> dict[str, float]:
        """Read one stream for a while."""
        with self._open(target, plan.DOWN) as sock:
            started = time.monotonic()
            count = swallow(sock, until=started + seconds)
            return {"bytes": count, "seconds": time.monotonic() - started}

    def up(self, target: str, size: int) -> dict[str, float]:
        """Write one stream of that many bytes. The time is that until the origin had them all.

        A number of bytes and not of seconds, since nginx takes a half-closed connection for closed.
        """
        with self._open(target, plan.UP, size) as sock:
            if sock.recv(1) != b"1":
                raise LoadError("a connection was refused")
            started = time.monotonic()
            left = size
            while left:
                left -= os.sendfile(sock.fileno(), self._payload, 0, min(left, self._payload_size))
            if sock.recv(1) != b"1":
                raise LoadError("a stream was cut")
            return {"bytes": size, "seconds": time.monotonic() - started}

    def _open(self, target: str, order: bytes, size: int = 0) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        limit_stalls(sock)
        sock.connect((target, plan.PORT))
        sock.send(plan.hello(order, size))
        return sock


def main() -> None:
    """Say when there is a namespace, then obey until stdin ends."""
    unshare_network()
    print("unshared", flush=True)
    box = Box()
    obey(box.connections, box.keep, box.release, box.down, box.up)


if __name__ == "__main__":
    main()
