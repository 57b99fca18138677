"""The origin of the live benchmarks: remembers who came. ``python -m benchmarks.rig.live.origin``

One loop for everything: what has happened is in its books before it answers an order.
"""

import json
import select
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from benchmarks.rig import plan
from benchmarks.rig.live.plan import FOREIGN, HTTP_PORT, PORTS, TTL, ZONE
from benchmarks.rig.orders import carry_out
from benchmarks.rig.origin import answer
from tests.lab.namespace import unshare_network

_BACKLOG: Final = 4096
_READ_SIZE: Final = 64 * 1024
_HTTP_ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"


@dataclass(slots=True, eq=False)
class _Connection:
    sock: socket.socket
    address: str
    """Which of the origin's addresses it came to."""
    port: int
    echoes: bool = False


class LiveOrigin:
    """Answers hellos and requests, echoes what is kept, and swallows what comes to the foreign address."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._open: set[_Connection] = set()
        self._names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._seen: list[tuple[int, str]] = []
        self._foreign = self._foreign_bytes = self._ended = 0
        self._last_end = 0.0

    def report(self) -> dict[str, Any]:
        """What has happened since :meth:`forget`; what is open now."""
        return {
            "seen": self._seen,
            "foreign": self._foreign,
            "foreign_bytes": self._foreign_bytes,
            "foreign_open": sum(connection.address == FOREIGN for connection in self._open),
            "open": len(self._open),
            "ended": self._ended,
            "last_end": self._last_end,
        }

    def forget(self) -> dict[str, Any]:
        """Begin new books. Connections stay."""
        self._seen = []
        self._foreign = self._foreign_bytes = self._ended = 0
        return {}

    def serve(self) -> None:
        """Serve until stdin ends."""
        self._names.bind((plan.ORIGIN, 53))
        self._names.setblocking(False)
        self._watch(self._names, self._answer_question)
        for port in PORTS:
            listener = socket.create_server(("0.0.0.0", port), backlog=_BACKLOG)
            listener.setblocking(False)
            self._watch(listener, partial(self._accept, listener))
        orders = {"report": self.report, "forget": self.forget}
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        print("ready", flush=True)
        while True:
            events = self._epoll.poll()
            for descriptor, _ in events:
                if descriptor in self._ready:
                    self._ready[descriptor]()
            # After all else: what was ready before the order came is in the answer.
            if any(descriptor == sys.stdin.fileno() for descriptor, _ in events):
                line = sys.stdin.readline()
                if not line:
                    return
                print(json.dumps(carry_out(orders, line)), flush=True)

    def _watch(self, sock: socket.socket, ready: Callable[[], None]) -> None:
        self._ready[sock.fileno()] = ready
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _answer_question(self) -> None:
        received, client = self._names.recvfrom(4096)
        self._names.sendto(answer(received, ZONE, TTL), client)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            address, port = sock.getsockname()
            connection = _Connection(sock, address, port)
            self._open.add(connection)
            self._foreign += address == FOREIGN
            self._watch(sock, partial(self._read, connection))

    def _read(self, connection: _Connection) -> None:
        try:
            received = connection.sock.recv(_READ_SIZE)
            if received:
                self._take(connection, received)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._end(connection)

    def _take(self, connection: _Connection, received: bytes) -> None:
        sock = connection.sock
        if connection.echoes:
            sock.send(received)
        elif connection.address == FOREIGN:
            self._foreign_bytes += len(received)
            if connection.port != HTTP_PORT:  # there, an upload goes on
                sock.send(b"1")
        elif connection.port == HTTP_PORT:
            sock.send(_HTTP_ANSWER)
        else:
            order, number = plan.order(received)
            self._seen.append((number, connection.address))
            sock.send(b"1")
            if order == plan.KEEP:
                connection.echoes = True
            else:
                self._end(connection)

    def _end(self, connection: _Connection) -> None:
        self._last_end = time.monotonic()
        self._ended += 1
        self._open.discard(connection)
        del self._ready[connection.sock.fileno()]
        connection.sock.close()


def main() -> None:
    """Say when there is a namespace, wait until the cable is laid, then serve."""
    unshare_network()
    print("unshared", flush=True)
    sys.stdin.readline()
    LiveOrigin().serve()


if __name__ == "__main__":
    main()
