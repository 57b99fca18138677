"""The lab's certificate authority, and a certificate for every name a client asks for."""

import ssl
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trustme

DEFAULT_NAME: Final = "lab-default.test"
"""What the certificate for a client without a usable SNI names."""


class Certificates:
    """Accepts TLS under a certificate for the SNI."""

    def __init__(self, ca_file: Path) -> None:
        self._ca = trustme.CA(organization_name="box-policy lab")
        self._ca.cert_pem.write_to_path(ca_file)
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._listeners: weakref.WeakKeyDictionary[ssl.SSLObject, Callable[[str | None], None]] = (
            weakref.WeakKeyDictionary()
        )
        self._first = self._context_for(DEFAULT_NAME)
        self._first.sni_callback = self._choose

    def accept(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, named: Callable[[str | None], None]
    ) -> ssl.SSLObject:
        """The server's side of a connection; ``named`` is told the SNI when the client hello has come."""
        tls = self._first.wrap_bio(incoming, outgoing, server_side=True)
        self._listeners[tls] = named
        return tls

    def _choose(self, tls: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        assert isinstance(tls, ssl.SSLObject)
        self._listeners[tls](name)
        if name:
            tls.context = self._contexts.get(name) or self._context_for(name)

    def _context_for(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        try:
            leaf = self._ca.issue_cert(name)
        except ValueError:  # not a name that a certificate can carry
            leaf = self._ca.issue_cert(DEFAULT_NAME)
        leaf.configure_cert(context)
        self._contexts[name] = context
        return context
