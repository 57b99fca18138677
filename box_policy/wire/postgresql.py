"""How PostgreSQL agrees on TLS (its manual, "Frontend/Backend Protocol", section "SSL Session Encryption").

The client sends an SSLRequest and waits; one byte answers it; behind an ``S`` it sends its ClientHello.
"""

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
"""Length 8 and request code 80877103."""

ACCEPTED = b"S"
"""The answer after which TLS begins. ``N`` would be a refusal, ``E`` the start of an error message."""
