"""What the origin records, and how it crosses the control channel."""

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet that the gate's host sent."""

    protocol: str
    """``tcp``, ``udp``, ``icmp``, ``icmpv6``, or the number of another."""
    source: str
    source_port: int
    address: str
    """The destination."""
    port: int
    """The destination port; 0 where the protocol has none, and in fragments after the first."""
    flags: str
    """TCP flags, of ``SAFRPU`` in that order: ``S`` alone is the SYN that opens a connection."""
    length: int
    """Bytes of payload behind the TCP or UDP header (behind the IP header of other protocols)."""
    payload: bytes
    """The first of them, up to 256."""


@dataclasses.dataclass(slots=True)
class Connection:
    """A TCP connection that the origin accepted."""

    id: int
    address: str
    """The address that was dialled."""
    port: int
    peer: tuple[str, int]
    """The gate's side; ``("", 0)`` if it was gone before the connection was accepted."""
    received: bytes = dataclasses.field(default=b"", repr=False)
    """The first 64 KiB as they came, before any decryption."""
    received_length: int = 0
    tls: bool = False
    """A TLS handshake was completed."""
    sni: str | None = None
    alpn: str | None = None
    closed: str | None = None
    """How the gate's side ended it: ``eof``, ``reset``; None while it hasn't."""


@dataclasses.dataclass(slots=True)
class Request:
    """An HTTP request whose head the origin has read."""

    connection: int
    """The connection's ``id``."""
    address: str
    port: int
    tls: bool
    method: str
    target: str
    headers: list[tuple[str, str]]
    """As they came: order, case and repetitions."""
    body_length: int = 0
    complete: bool = False
    """The whole body has come."""

    def header(self, name: str) -> str | None:
        """The values of a header, joined by a comma; None if there is none."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A message that reached port 53."""

    name: str
    """Without the trailing dot, in the case it came in; empty if the message isn't a DNS query."""
    type: str
    transport: str
    """``udp`` or ``tcp``."""
    address: str
    """The address asked."""
    peer: tuple[str, int]
    raw: bytes = dataclasses.field(repr=False)


def dump(message: Any) -> bytes:
    """One line of JSON. Bytes travel as ``{"bytes": ...}``, in Latin-1."""
    return json.dumps(message, default=_encode).encode() + b"\n"


def load(line: bytes) -> Any:
    """The message on such a line."""
    return json.loads(line, object_hook=_decode)


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.decode("latin-1")}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no place in a control message")


def _decode(value: dict[str, Any]) -> Any:
    if value.keys() == {"bytes"}:
        return value["bytes"].encode("latin-1")
    if "peer" in value:
        value["peer"] = tuple(value["peer"])
    if "headers" in value:
        value["headers"] = [tuple(pair) for pair in value["headers"]]
    return value
