"""TLS alert records, with which the gate tells a client why it hangs up (RFC 8446 section 6)."""

ACCESS_DENIED = 49
"""The policy does not let this connection through."""
INTERNAL_ERROR = 80
"""The connection is allowed, but could not be made."""


def fatal_alert(description: int) -> bytes:
    """A plaintext alert record of level fatal. Its version is the one that every client accepts."""
    return bytes((0x15, 3, 3, 0, 2, 2, description))
