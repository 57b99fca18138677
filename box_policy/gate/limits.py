"""What a box may cost, before and after a verdict: what operators set, and what the defaults are."""

import errno
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Final, Self

from box_policy.wire.client_hello import MAX_EXTENSIONS, MAX_HELLO

OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Errors of accept(2) that pass when something else is closed."""

_MOST: Final = 1 << 40
"""No limit is larger: a typing error should not lift one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds, sizes in bytes, counts per box. ``docs/boxes.md`` lists them for operators."""

    verdict_timeout: float = 10
    """From accept to the verdict, whatever trickles in meanwhile."""
    connect_timeout: float = 5
    """For each address that is tried."""
    dial_timeout: float = 6
    """After which no other address of a name is tried."""
    linger: float = 2
    """For a refused client to read why, before its connection is closed."""
    idle_timeout: float = 3600
    """For a relayed connection on which nothing moves."""
    http_idle_timeout: int = 600
    """For an HTTP connection between requests, or without progress."""
    dns_idle_timeout: float = 10
    """For a DNS connection over TCP, between questions."""
    connection_rate: int = 100
    """New connections a second, in the long run. All that the gate opens to one address have different ports,
    which aren't free again for a minute after the end: no box may use up those that others need."""
    connection_burst: int = 2000
    """New connections in one go, before that applies."""
    connections: int = 1024
    """Open at once, each from accept to close."""
    pending: int = 512
    """Of these, connections that have no verdict yet, or none of whose addresses has answered yet; and HTTP
    requests without a verdict."""
    http_connections: int = 256
    """Of these, connections that speak plain HTTP, each of which costs much more than another."""
    dns_connections: int = 64
    """DNS connections over TCP at once."""
    dns_pending: int = 256
    """Questions that aren't answered yet, at once."""
    question_rate: int = 200
    """Questions a second, in the long run: a host that asks name servers too much is answered no more."""
    question_burst: int = 4000
    """Questions in one go, before that applies."""
    resolving: int = 64
    """Questions to name servers at once, whatever they are asked for."""
    hello: int = MAX_HELLO
    """The most that a ClientHello may have; with the headers of its records twice as much."""
    hello_extensions: int = MAX_EXTENSIONS
    """Extensions in a ClientHello."""
    http_head: int = 64 * 1024
    """The most that a request's or a response's head may have."""
    roomy: int = 64
    """Connections whose buffers the kernel may enlarge; those of others stay small."""
    buffered: int = 256 * 1024 * 1024
    """What all connections together may have in buffers, the kernel's too. Past that those that have most are
    reset."""
    records: int = 200
    """Records that are written a second, in the long run; what is left out is counted."""
    records_burst: int = 5000
    """Records that are written in one go, before that applies."""

    @classmethod
    def parse(cls, given: Iterable[str]) -> Self:
        """The limits that texts like ``connections=512`` ask for; the rest as it is by default.

        Raises ValueError, with a message for who wrote them.
        """
        kinds = {each.name: each.type for each in fields(cls)}
        chosen: dict[str, float] = {}
        for text in given:
            name, equals, value = text.partition("=")
            if not equals:
                raise ValueError(f"{text!r} is not NAME=VALUE, such as connections=512")
            if name not in kinds:
                raise ValueError(f"there is no limit {name!r}, but {', '.join(kinds)}")
            if name in chosen:
                raise ValueError(f"{name} is given twice")
            chosen[name] = _number(value, name, whole=kinds[name] is int)
        return replace(cls(), **chosen)  # type: ignore[arg-type]  # of the fields' own kinds


def _number(text: str, name: str, *, whole: bool) -> float:
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= _MOST:  # nor NaN
        what = "a whole number" if whole else "a number of seconds"
        raise ValueError(f"{name}={text}: not {what} above 0")
    return number
