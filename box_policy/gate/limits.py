"""What a box may cost before, and after, a verdict."""

from dataclasses import dataclass


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
