"""Attacks that are bytes: sent to an address as the program in the box chose, under a name of its choice."""

from collections.abc import Callable
from typing import Any

from tests.adversary.attack import Act
from tests.adversary.attacker import Attacker, Seen
from tests.lab.hellos import client_hello


def hello(box: Attacker, name: bytes | None, **fields: Any) -> bytes:
    """A ClientHello with the attack's secret in its random."""
    return client_hello(name, random=box.nonce.encode().ljust(32, b"\0"), **fields)


def request(box: Attacker, host: bytes, *, target: bytes = b"/", method: bytes = b"GET", more: bytes = b"") -> bytes:
    """A request with the attack's secret in a header. ``more``: whole header lines."""
    return (
        method + b" " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n"
        b"X-Secret: " + box.nonce.encode() + b"\r\n" + more + b"\r\n"
    )


def tls(address: str, name: bytes | None, port: int = 443, **fields: Any) -> Act:
    """Send a hello, and read to the end."""
    return sends(address, port, lambda box: hello(box, name, **fields))


def allowed_tls(address: str, name: bytes, port: int = 443, **fields: Any) -> Act:
    """Send a hello that is let through, and wait for the first byte of the server's."""

    async def act(box: Attacker) -> Seen:
        line = await box.connect(address, port)
        await line.send(hello(box, name, **fields))
        seen = await line.read(size=1) if line.error is None else await line.see()
        await line.close()
        return seen

    return act


def http(address: str, host: bytes, port: int = 80, **parts: Any) -> Act:
    """Send a request, and read to the end."""
    return sends(address, port, lambda box: request(box, host, more=b"Connection: close\r\n", **parts))


def sends(address: str, port: int, data: Callable[[Attacker], bytes], **how: Any) -> Act:
    """Connect, send, and read to the end. ``how``: segment and pause, as of ``Line.send``."""

    async def act(box: Attacker) -> Seen:
        return await box.exchange(address, port, data(box), **how)

    return act
