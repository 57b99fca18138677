"""What the origin has seen above IP since the last reset."""

import socket
from collections.abc import Callable
from typing import Any, Final

from tests.lab.records import Connection, Question, Request

_KEPT: Final = 64 << 10


class Journal:
    """Connections, requests, questions, and the origin's own mistakes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.changed = changed
        """To be called when a record in one of the lists grows."""
        self.connections: list[Connection] = []
        self.requests: list[Request] = []
        self.questions: list[Question] = []
        self.faults: list[str] = []
        self._last_id = 0

    def clear(self) -> None:
        """Forget everything. What still grows is in no list any more."""
        self.connections.clear()
        self.requests.clear()
        self.questions.clear()
        self.faults.clear()

    def accepted(self, sock: socket.socket) -> Connection:
        """Note a connection."""
        self._last_id += 1
        address, port = endpoint(sock.getsockname())
        try:
            connection = Connection(self._last_id, address, port, endpoint(sock.getpeername()))
        except OSError:  # reset while it waited to be accepted: the kernel has forgotten the peer
            connection = Connection(self._last_id, address, port, ("", 0), closed="reset")
        self.connections.append(connection)
        self.changed()
        return connection

    def received(self, connection: Connection, data: bytes) -> None:
        """Note bytes of a connection."""
        connection.received += data[: _KEPT - len(connection.received)]
        connection.received_length += len(data)
        self.changed()

    def closed(self, connection: Connection, how: str) -> None:
        """Note how the gate's side ended a connection; the first word stays."""
        connection.closed = connection.closed or how
        self.changed()

    def requested(self, request: Request) -> None:
        """Note a request's head."""
        self.requests.append(request)
        self.changed()

    def asked(self, question: Question) -> None:
        """Note a DNS message."""
        self.questions.append(question)
        self.changed()

    def fault(self, text: str) -> None:
        """Note that the origin itself went wrong."""
        self.faults.append(text)
        self.changed()


def endpoint(name: Any) -> tuple[str, int]:
    """Address and port in the socket name of a socket that serves both families."""
    return name[0].removeprefix("::ffff:"), name[1]
