"""Attacks that are bytes: sent to an address as the program in the box chose, under a name of its choice."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from tests.adversary.attack import Act
from tests.adversary.attacker import Attacker, Line, Seen, classify
from tests.lab.hellos import KEY_SHARE, SUPPORTED_VERSIONS, client_hello


def hello(box: Attacker, name: bytes | None, **fields: Any) -> bytes:
    """A ClientHello with the attack's secret in its random."""
    return client_hello(name, **{"random": box.nonce.encode().ljust(32, b"\0")} | fields)


def hello_without_share(box: Attacker, name: bytes, **fields: Any) -> bytes:
    """A ClientHello without a key share: every TLS 1.3 server asks for another (HelloRetryRequest)."""
    extensions = [
        (SUPPORTED_VERSIONS, b"\x02\x03\x04"),
        (KEY_SHARE, b"\0\0"),
        *fields.pop("extra_extensions", ()),
    ]
    return hello(box, name, versions=(), extra_extensions=extensions, **fields)


def request(
    box: Attacker, host: bytes, *, target: bytes = b"/", method: bytes = b"GET", more: bytes = b""
) -> bytes:
    """A request with the attack's secret in a header. ``more``: whole header lines."""
    return (
        method + b" " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n"
        b"X-Secret: " + box.nonce.encode() + b"\r\n" + more + b"\r\n"
    )


def tls(address: str, name: bytes | None, port: int = 443, **fields: Any) -> Act:
    """Send a hello, and read to the end."""
    return sends(address, port, lambda box: hello(box, name, **fields))


def allowed_tls(address: str, name: bytes | None, port: int = 443, **fields: Any) -> Act:
    """Send a hello that is let through, and wait for the server's."""
    return carried(address, port, lambda box: hello(box, name, **fields))


def carried(address: str, port: int, data: Callable[[Attacker], bytes], **how: Any) -> Act:
    """Send what is let through, and wait for the start of a server's answer, or for an alert."""

    async def act(box: Attacker) -> Seen:
        line = await box.connect(address, port)
        if line.error is None:
            await line.send(data(box), **how)
        seen = await start_of_answer(line)
        await line.close()
        return seen

    return act


async def start_of_answer(line: Line) -> Seen:
    """What an answer begins with; if that is an alert, how it ends."""
    if line.error is not None:
        return await line.see()
    seen = await line.read(size=7)
    if seen.kind != "alert" or seen.ended is not None:
        return seen
    end = await line.read()
    return classify(seen.data + end.data, end.ended, seen.seconds + end.seconds)


def http(address: str, host: bytes, port: int = 80, **parts: Any) -> Act:
    """Send a request, and read to the end."""
    return sends(address, port, lambda box: request(box, host, more=b"Connection: close\r\n", **parts))


def sends(address: str, port: int, data: Callable[[Attacker], bytes], **how: Any) -> Act:
    """Connect, send, and read to the end. ``how``: segment and pause, as of ``Line.send``."""

    async def act(box: Attacker) -> Seen:
        return await box.exchange(address, port, data(box), **how)

    return act


def sends_each(address: str, port: int, data: Callable[[Attacker], Iterable[bytes]], **how: Any) -> Act:
    """The same with several things, each on a connection of its own. If the box is told different
    things, what it sees is all of them."""

    async def act(box: Attacker) -> Seen:
        seen = await asyncio.gather(*(box.exchange(address, port, each, **how) for each in data(box)))
        told = sorted(set(map(str, seen)))
        return seen[0] if len(told) == 1 else Seen(", ".join(told))

    return act
