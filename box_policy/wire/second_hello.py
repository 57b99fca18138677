"""The ClientHello that a server asks for again by a HelloRetryRequest (RFC 8446 section 4.1.4).

A client can always make it ask: it offers no key share. The second hello must repeat the first one's name,
but not every server looks: OpenSSL answers with the certificate, and the site, of the second. So whoever
has judged the first name reads on, in the clear, until the server has taken a hello.
"""

from hashlib import sha256
from typing import Final

from box_policy.wire.client_hello import ClientHello, ClientHelloReader, Fault, Malformed

_CHANGE_CIPHER_SPEC: Final = 0x14
_ALERT: Final = 0x15
_HANDSHAKE: Final = 0x16
_APPLICATION_DATA: Final = 0x17
_RECORD_HEADER: Final = 5

_SERVER_HELLO: Final = b"\2"
_RANDOM: Final = slice(6, 38)
"""Of a ServerHello, behind the handshake's header and legacy_version."""
_RETRY: Final = sha256(b"HelloRetryRequest").digest()
"""The random of a ServerHello that is a HelloRetryRequest (RFC 8446 section 4.1.3)."""
_MAX_SERVER_BYTES: Final = 1024
"""In which the server's first message begins, whatever alerts come before it."""


class SecondHelloReader:
    """Takes what both sides send behind the first hello, keeps next to nothing of it, never raises.

    Both methods return False once that side has no more to tell.
    """

    __slots__ = ("_asked", "_first", "_header", "_second", "_server", "_skip", "fault", "over")

    def __init__(self, first: ClientHello) -> None:
        self._first = first
        self._header = bytearray()  # of the client's record that has just begun
        self._skip = 0  # bytes of it still to come, if it holds no hello
        self._second: ClientHelloReader | None = None
        self._server = bytearray()
        self._asked = False  # has the server, for another hello?
        self.over = False
        """Nothing more is to be learned from either side."""
        self.fault: Malformed | None = None
        """Why the connection has to end, if it has to."""

    @property
    def kept(self) -> int:
        """Bytes of the client's that are kept until there are enough."""
        return len(self._second.received) if self._second is not None else 0

    def from_client(self, data: bytes | memoryview) -> bool:
        """Take what the client sends, before the server gets it: if there is a fault now, it must not."""
        while data and not self.over:
            if self._second is not None:
                self._compare(self._second.feed(data))
                break
            if self._skip:
                data, self._skip = data[self._skip :], max(0, self._skip - len(data))
                continue
            missing = _RECORD_HEADER - len(self._header)
            self._header += data[:missing]
            data = data[missing:]
            kind = self._header[0]
            if kind == _HANDSHAKE:
                self._second = ClientHelloReader()
                self._compare(self._second.feed(self._header))
            elif kind not in (_CHANGE_CIPHER_SPEC, _ALERT, _APPLICATION_DATA):
                self._end(Malformed(Fault.INVALID, f"a record of type {kind} behind the hello"))
            elif len(self._header) == _RECORD_HEADER:
                self._skip = int.from_bytes(self._header[3:])  # early data, for one
                self._header.clear()
        return not self.over

    def from_server(self, data: bytes | memoryview) -> bool:
        """Take what the server sends."""
        if self.over or self._asked:
            return False
        self._server += data[: _MAX_SERVER_BYTES - len(self._server)]
        message = _first_message(self._server)
        if message is not None and len(message) < _RANDOM.stop and len(self._server) < _MAX_SERVER_BYTES:
            return True
        self._server.clear()
        if message is not None and message[:1] == _SERVER_HELLO and message[_RANDOM] == _RETRY:
            self._asked = True
        else:
            self._end()  # it has taken the first hello, or none
        return False

    def _compare(self, second: ClientHello | Malformed | None) -> None:
        if isinstance(second, Malformed):
            self._end(Malformed(second.fault, f"the second hello: {second.detail}"))
        elif second is not None and second.server_name != self._first.server_name:
            self._end(Malformed(Fault.NAME_AMBIGUOUS, "the second hello names another host"))
        elif second is not None and second.ech and not self._first.ech:
            self._end(Malformed(Fault.INVALID, "only the second hello is encrypted"))
        elif second is not None:
            self._end()

    def _end(self, fault: Malformed | None = None) -> None:
        self.over = True
        self._second = None
        self.fault = fault


def _first_message(data: bytearray) -> bytearray | None:
    """As much of the first handshake message as is there; None if the data isn't TLS."""
    message = bytearray()
    start = 0
    while start < len(data):
        if data[start] not in (_HANDSHAKE, _ALERT, _CHANGE_CIPHER_SPEC):
            return None
        end = start + _RECORD_HEADER + int.from_bytes(data[start + 3 : start + 5])
        if data[start] == _HANDSHAKE:
            message += data[start + _RECORD_HEADER : end]
        start = end
    return message
