"""What a box may cost before, and after, a verdict."""

import errno
import resource
from dataclasses import dataclass, replace
from typing import Final, Self

OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Errors of accept(2) that pass when something else is closed."""

_DESCRIPTORS_A_CONNECTION: Final = 6
"""Two sockets, and a pipe for each direction that is held up."""
_RESERVED_DESCRIPTORS: Final = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds, sizes in bytes, counts per box."""

    verdict_timeout: float = 10
    """From accept to the verdict, whatever trickles in meanwhile."""
    connect_timeout: float = 5
    """For each address that is tried."""
    linger: float = 2
    """For a refused client to read why, before its connection is closed."""
    idle_timeout: float = 3600
    """For a relayed connection on which nothing moves."""
    connections: int = 4096
    """Open at once, each from accept to close."""
    pending: int = 1024
    """Connections without a verdict yet, at once."""
    http_head: int = 64 * 1024
    http_idle_timeout: int = 600
    """For an HTTP connection between requests, or without progress."""
    dns_pending: int = 256
    """Questions being asked at once."""
    dns_connections: int = 64
    """DNS connections over TCP at once."""
    dns_idle_timeout: float = 10

    def within_descriptors(self) -> Self:
        """The same, with no more connections than this process has descriptors for. Raises the process's
        soft limit to the hard one first."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        most = max(1, (hard - _RESERVED_DESCRIPTORS) // _DESCRIPTORS_A_CONNECTION)
        return replace(self, connections=min(self.connections, most), pending=min(self.pending, most))
