"""What a client sees of a connection that names a host, sends its hello, and reads to the end."""

import socket
from enum import StrEnum
from typing import Final

from benchmarks.rig import plan
from benchmarks.rig.orders import LoadError
from box_policy.wire.alerts import ACCESS_DENIED, fatal_alert

_DENIED: Final = fatal_alert(ACCESS_DENIED)


class Outcome(StrEnum):
    """The one thing that the client has seen."""

    ANSWERED = "answered"
    """The origin's byte."""
    DENIED = "denied"
    """The gate's alert."""
    RESET = "reset"


class Conversation:
    """One connection, with a new, blocking socket. It is made, and says what it has to say, at once."""

    def __init__(self, sock: socket.socket, address: str, first_bytes: bytes, port: int = plan.PORT) -> None:
        self.sock = sock
        self._was_reset = False
        try:
            sock.connect((address, port))
            sock.send(first_bytes)
        except ConnectionError:
            # Told once: who reads now finds what had come before, and an end that looks like a FIN.
            self._was_reset = True

    def outcome(self) -> Outcome:
        """Read to the end, and close. LoadError: none of the outcomes."""
        with self.sock:
            received = b""
            try:
                received = self.sock.recv(64, socket.MSG_WAITALL)
            except ConnectionError:
                self._was_reset = True
            except BlockingIOError as error:
                raise LoadError("a connection has stalled") from error
        if received == b"1":
            return Outcome.ANSWERED
        if received == _DENIED:
            return Outcome.DENIED
        if not received and self._was_reset:
            return Outcome.RESET
        raise LoadError(f"a connection came to this: {received!r}")

    def first_outcome(self) -> Outcome:
        """The same, but an answer is enough: the foreign origin waits for more."""
        try:
            if self.sock.recv(1, socket.MSG_PEEK) == b"1":
                self.sock.close()
                return Outcome.ANSWERED
        except ConnectionError:
            self._was_reset = True
        return self.outcome()
