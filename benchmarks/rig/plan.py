"""Addresses of the rig, and what a hello asks the origin to do.

The addresses look public, since the gate refuses those that are not, and exist in the rig alone.
"""

import struct
from typing import Final

from tests.lab.hellos import client_hello

GATE_TO_BOX: Final = "51.81.20.1"
BOX: Final = "51.81.20.2"
GATE_TO_ORIGIN: Final = "51.81.1.1"
ORIGIN: Final = "51.81.1.2"
ALLOWED: Final = "51.81.10.10"
"""The origin, by way of the proxy."""
DIRECT: Final = "51.81.10.20"
"""The origin, by way of the gate's routes alone."""

PORT: Final = 443
PROXY_PORT: Final = 8443
NAME: Final = "allowed.test"

# A hello's ``random`` field is free for the client to choose, so it carries the order to the origin:
# every connection then looks alike to a proxy.
ANSWER: Final = b"a"
"""One byte, then close."""
KEEP: Final = b"k"
"""One byte, and stay open."""
RELEASE: Final = b"r"
"""Close all that was kept, then this one."""
DOWN: Final = b"d"
"""Send until the client is gone."""
UP: Final = b"u"
"""Read the number of bytes that the order tells, then answer one."""

_RANDOM_AT: Final = 11  # after the record's header (5), the handshake's (4) and legacy_version (2)
_RANDOM: Final = struct.Struct("!cQ23x")


def hello(order: bytes, size: int = 0, *, name: str = NAME) -> bytes:
    """A ClientHello for a name that carries an order, and a number of bytes (or another number) with it."""
    return client_hello(name.encode(), random=_RANDOM.pack(order, size))


def order(received: bytes) -> tuple[bytes, int]:
    """The order in a received hello, and its number. ValueError if there is none."""
    try:
        kind, size = _RANDOM.unpack_from(received, _RANDOM_AT)
    except struct.error as error:
        raise ValueError("not a hello") from error
    return bytes(kind), int(size)
