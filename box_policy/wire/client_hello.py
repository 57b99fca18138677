"""A strict, incremental reader of the TLS ClientHello (RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3).

A filter that reads a hello more leniently than the server behind it can be told one name while the
server hears another. So every length must be exact, no extension may occur twice, and the server name
list holds exactly one host name. The reader keeps what it has parsed: a hello that arrives one byte at
a time costs no more than one that arrives at once.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

MAX_HELLO = 64 * 1024
"""Bytes of the handshake message. Hellos with post-quantum key shares have about 2 KiB."""

MAX_WIRE = 2 * MAX_HELLO
"""Bytes on the wire up to the hello's end, record headers included."""

MAX_EXTENSIONS = 256

_HANDSHAKE_RECORD = 0x16
_MAJOR_VERSION = 3
_RECORD_HEADER = 5
_MAX_RECORD = 1 << 14
_CLIENT_HELLO = 1
_HANDSHAKE_HEADER = 4
_RANDOM = 32

_SERVER_NAME = 0
_HOST_NAME = 0
_ALPN = 16
# encrypted_client_hello (RFC 9849), its drafts, and ESNI before it. GREASE looks the same, by design.
_ENCRYPTED_HELLO = frozenset({0xFE0D, 0xFE0A, 0xFE09, 0xFE08, 0xFFCE})


class Fault(StrEnum):
    """What is wrong with a hello."""

    INVALID = "invalid"
    TOO_LARGE = "too large"
    NAME_AMBIGUOUS = "name ambiguous"
    NAME_EMPTY = "name empty"


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not a ClientHello that every server would read in the same way."""

    fault: Fault
    detail: str


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a hello says that matters here."""

    server_name: bytes | None
    """The host name as sent, unchecked; None when the extension is absent."""
    alpn: tuple[bytes, ...]
    ech: bool
    """It carries Encrypted Client Hello, an older draft of it, or GREASE for it."""
    size: int = field(default=0, compare=False)
    """Bytes on the wire, record headers included."""


class _Reject(Exception):
    """Ends the parsing of one hello; never leaves this module."""

    def __init__(self, detail: str, fault: Fault = Fault.INVALID) -> None:
        self.malformed = Malformed(fault, detail)


class ClientHelloReader:
    """Takes a client's bytes as they come and tells when the hello is complete."""

    __slots__ = ("_buffer", "_hello", "_max_extensions", "_max_hello", "_record_end", "_result")

    def __init__(self, max_hello: int = MAX_HELLO, max_extensions: int = MAX_EXTENSIONS) -> None:
        """``max_hello``: bytes of the handshake message; on the wire it may have twice as many."""
        self._max_hello = max_hello
        self._max_extensions = max_extensions
        self._buffer = bytearray()  # every byte fed so far
        self._hello = bytearray()  # the handshake bytes in them
        self._record_end = 0  # where, in the buffer, the next record header starts
        self._result: ClientHello | Malformed | None = None

    @property
    def received(self) -> bytearray:
        """Every byte fed so far: what has to be forwarded if the hello is allowed."""
        return self._buffer

    def feed(self, data: bytes | bytearray | memoryview) -> ClientHello | Malformed | None:
        """Add bytes. None: the hello is not complete. Once there is a result it stays the same."""
        if self._result is None:
            self._buffer += data
            try:
                self._result = self._read()
            except _Reject as reject:
                self._result = reject.malformed
        else:
            self._buffer += data
        return self._result

    def _read(self) -> ClientHello | None:
        while True:
            header = self._record_end
            self._check_header(header)
            if len(self._buffer) < header + _RECORD_HEADER:
                return None
            length = int.from_bytes(self._buffer[header + 3 : header + 5])
            if not 0 < length <= _MAX_RECORD:
                raise _Reject(f"a record of {length} bytes")
            body = header + _RECORD_HEADER
            self._check_handshake_header(self._buffer[body : body + min(length, _HANDSHAKE_HEADER)])
            if body + length > 2 * self._max_hello:
                raise _Reject("too many bytes before the end of the hello", Fault.TOO_LARGE)
            if len(self._buffer) < body + length:
                return None
            self._hello += self._buffer[body : body + length]
            self._record_end = body + length
            if len(self._hello) >= _HANDSHAKE_HEADER:
                size = _HANDSHAKE_HEADER + int.from_bytes(self._hello[1:_HANDSHAKE_HEADER])
                if len(self._hello) > size:
                    raise _Reject("bytes behind the hello in its record")
                if len(self._hello) == size:
                    return replace(
                        _parse(bytes(self._hello[_HANDSHAKE_HEADER:]), self._max_extensions),
                        size=self._record_end,
                    )

    def _check_header(self, header: int) -> None:
        """As early as its bytes are there: a client must not be waited for in vain."""
        have = self._buffer[header : header + 2]
        if len(have) > 0 and have[0] != _HANDSHAKE_RECORD:
            raise _Reject(f"a record of type {have[0]} before the end of the hello")
        if len(have) > 1 and have[1] != _MAJOR_VERSION:
            raise _Reject(f"a record of major version {have[1]}")

    def _check_handshake_header(self, next_bytes: bytearray) -> None:
        start = bytes(self._hello[:_HANDSHAKE_HEADER])
        start = (start + next_bytes)[:_HANDSHAKE_HEADER]
        if start and start[0] != _CLIENT_HELLO:
            raise _Reject(f"handshake type {start[0]}")
        if (
            len(start) == _HANDSHAKE_HEADER
            and int.from_bytes(start[1:]) > self._max_hello - _HANDSHAKE_HEADER
        ):
            raise _Reject(f"a hello of {int.from_bytes(start[1:])} bytes", Fault.TOO_LARGE)


class _Cursor:
    """Reads big-endian numbers and length-prefixed vectors (RFC 8446 section 3.4)."""

    __slots__ = ("data", "end", "position")

    def __init__(self, data: bytes, position: int, end: int) -> None:
        self.data = data
        self.position = position
        self.end = end

    @property
    def done(self) -> bool:
        return self.position == self.end

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def take(self, size: int) -> bytes:
        start = self.position
        if start + size > self.end:
            raise _Reject("a field is longer than what holds it")
        self.position = start + size
        return self.data[start : start + size]

    def vector(self, length_size: int) -> "_Cursor":
        size = self.number(length_size)
        start = self.position
        if start + size > self.end:
            raise _Reject("a vector is longer than what holds it")
        self.position = start + size
        return _Cursor(self.data, start, start + size)

    def rest(self) -> bytes:
        return self.take(self.end - self.position)


def _parse(body: bytes, max_extensions: int) -> ClientHello:
    hello = _Cursor(body, 0, len(body))
    if hello.number(1) != _MAJOR_VERSION:
        raise _Reject("legacy_version is not of major version 3")
    hello.take(1 + _RANDOM)
    if len(hello.vector(1).rest()) > 32:
        raise _Reject("session id longer than 32 bytes")
    cipher_suites = hello.vector(2).rest()
    if not cipher_suites or len(cipher_suites) % 2:
        raise _Reject(f"{len(cipher_suites)} bytes of cipher suites")
    if 0 not in hello.vector(1).rest():
        raise _Reject("compression methods without null")
    if hello.done:
        return ClientHello(None, (), False)

    extensions = hello.vector(2)
    if not hello.done:
        raise _Reject("bytes behind the extensions")
    server_name: bytes | None = None
    alpn: tuple[bytes, ...] = ()
    ech = False
    seen: set[int] = set()
    while not extensions.done:
        kind = extensions.number(2)
        content = extensions.vector(2)
        if kind in seen:
            fault = Fault.NAME_AMBIGUOUS if kind == _SERVER_NAME else Fault.INVALID
            raise _Reject(f"extension {kind} twice", fault)
        seen.add(kind)
        if len(seen) > max_extensions:
            raise _Reject("too many extensions", Fault.TOO_LARGE)
        if kind == _SERVER_NAME:
            server_name = _parse_server_name(content)
        elif kind == _ALPN:
            alpn = _parse_alpn(content)
        elif kind in _ENCRYPTED_HELLO:
            ech = True
    return ClientHello(server_name, alpn, ech)


def _parse_server_name(content: _Cursor) -> bytes:
    names = content.vector(2)
    if not content.done:
        raise _Reject("bytes behind the server name list")
    if names.done:
        raise _Reject("an empty server name list", Fault.NAME_EMPTY)
    if names.number(1) != _HOST_NAME:
        raise _Reject("a server name that is not a host name", Fault.NAME_AMBIGUOUS)
    name = names.vector(2).rest()
    if not names.done:
        raise _Reject("more than one server name", Fault.NAME_AMBIGUOUS)
    if not name:
        raise _Reject("an empty server name", Fault.NAME_EMPTY)
    return name


def _parse_alpn(content: _Cursor) -> tuple[bytes, ...]:
    names = content.vector(2)
    if not content.done:
        raise _Reject("bytes behind the ALPN list")
    protocols = []
    while not names.done:
        protocols.append(names.vector(1).rest())
    return tuple(protocols)
