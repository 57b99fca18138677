"""OpenSSL as a server: which names it hears in what a client sends."""

import ssl
import sys
from collections.abc import Callable
from typing import Protocol

from OpenSSL import SSL

type Certify = Callable[[ssl.SSLContext | SSL.Context], None]
"""Gives a context its certificate."""


class Server(Protocol):
    """A TLS server that tells what it hears. Without a certificate it gives up once it has heard a name."""

    version: str

    def hear(self, *flights: bytes) -> list[bytes | None]:
        """The name in each hello of one connection, None for a hello without one; none of a hello that is
        refused before that. A flight is what the client sends before the server gets its turn."""

    def answer(self, flight: bytes) -> bytes:
        """What the server sends first."""


class StandardServer:
    """The OpenSSL behind Python's ``ssl``, willing to speak every version and suite that it knows."""

    version = ssl.OPENSSL_VERSION

    def __init__(self, certify: Certify | None = None) -> None:
        self._heard: list[bytes | None] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        self._context.set_ciphers("ALL:@SECLEVEL=0")
        self._context.sni_callback = self._hear
        if certify is not None:
            certify(self._context)

    def hear(self, *flights: bytes) -> list[bytes | None]:
        self._converse(flights)
        return self._heard

    def answer(self, flight: bytes) -> bytes:
        return self._converse((flight,))

    def _converse(self, flights: tuple[bytes, ...]) -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = self._context.wrap_bio(incoming, outgoing, server_side=True)
        self._heard = []
        # Python can't hand a name that isn't ASCII to the callback. It says so here, with the name.
        hook, sys.unraisablehook = sys.unraisablehook, self._hear_undecodable
        try:
            for flight in flights:
                incoming.write(flight)
                try:
                    server.do_handshake()
                except ssl.SSLWantReadError:
                    pass
        except ssl.SSLError:
            pass
        finally:
            sys.unraisablehook = hook
        return outgoing.read()

    def _hear(self, server: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        self._heard.append(None if name is None else name.encode("ascii"))

    def _hear_undecodable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        error = unraisable.exc_value
        # Anything else has failed in here, and must not pass for a server that has heard nothing.
        self._heard.append(error.object if isinstance(error, UnicodeDecodeError) else repr(error).encode())


class BundledServer:
    """The OpenSSL that the cryptography package brings with it, as a rule a newer one."""

    version = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode("ascii")

    def __init__(self, certify: Certify | None = None) -> None:
        self._heard: list[bytes | None] = []
        self._context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self._context.set_min_proto_version(0)
        self._context.set_cipher_list(b"ALL:@SECLEVEL=0")
        self._context.set_tlsext_servername_callback(
            lambda connection: self._heard.append(connection.get_servername())
        )
        if certify is not None:
            certify(self._context)

    def hear(self, *flights: bytes) -> list[bytes | None]:
        self._converse(flights)
        return self._heard

    def answer(self, flight: bytes) -> bytes:
        return self._converse((flight,)).bio_read(1 << 16)

    def _converse(self, flights: tuple[bytes, ...]) -> SSL.Connection:
        server = SSL.Connection(self._context, None)
        server.set_accept_state()
        self._heard = []
        try:
            for flight in filter(None, flights):
                server.bio_write(flight)
                try:
                    server.do_handshake()
                except SSL.WantReadError:
                    pass
        except SSL.Error:
            pass
        return server
