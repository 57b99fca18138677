"""Where a gate is controlled: a unix socket, or an address with a port."""

import os
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from box_policy.policy.quoting import quoted

_MAX_PATH: Final = 107
"""Bytes of a unix socket's path: sun_path of unix(7) has 108, the last of which is zero."""

_FORMS: Final = "write unix:/path/to.sock, 127.0.0.1:9090, localhost:9090 or [::1]:9090"
_LOCALHOST: Final = IPv4Address("127.0.0.1")
"""What localhost means here. It is not looked up: the answer may be any address."""


class ControlError(ValueError):
    """The control endpoint can't be had like this. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket, by its absolute path."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An IP address, and a port of TCP; 0 is any free one."""

    host: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.host.version == 6 else str(self.host)
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class InheritedAddress:
    """A listening unix socket that this process was handed as a file descriptor.

    Its name is its maker's matter: it may lie in the file system, or be an abstract one, or none.
    """

    fd: int

    def __str__(self) -> str:
        return f"file descriptor {self.fd}"


type ControlAddress = UnixAddress | TcpAddress
"""What a client can connect to."""
type ListeningAddress = ControlAddress | InheritedAddress
"""What an endpoint can listen on."""


def parse_control_address(text: str) -> ControlAddress:
    """The address that ``text`` names.

    One of ``unix:/path``, ``/path``, ``127.0.0.1:9090``, ``[::1]:9090``, and ``localhost:9090`` for
    ``127.0.0.1:9090``.

    Raises:
        ControlError: it names none, or one that the endpoint must not have.
    """
    if text.startswith(("unix:", "/")):
        return _unix(text.removeprefix("unix:"))
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5:
        raise ControlError(f"{quoted(text)} is no control address; {_FORMS}")
    if int(port) > 65535:
        raise ControlError(f"{quoted(text)}: ports are 1 to 65535")
    if host.lower() == "localhost":
        return TcpAddress(_LOCALHOST, int(port))
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ControlError(f"{quoted(text)}: {quoted(host)} is not an IP address; {_FORMS}") from None
    if bracketed != (address.version == 6):
        raise ControlError(f"{quoted(text)} is no control address; {_FORMS}")
    if isinstance(address, IPv6Address) and (address.scope_id or address.ipv4_mapped):
        raise ControlError(f"{quoted(text)}: write the address without a zone, and an IPv4 address as such")
    if address.is_unspecified or address.is_multicast:
        raise ControlError(
            f"{quoted(text)}: a control endpoint has one address of its own, 127.0.0.1 or ::1 as a rule; "
            "it never listens on all of them"
        )
    return TcpAddress(address, int(port))


def _unix(path: str) -> UnixAddress:
    if not path.startswith("/"):
        raise ControlError(f"{quoted(path)}: a unix socket's path is absolute; {_FORMS}")
    if "\0" in path or path.endswith("/"):
        raise ControlError(f"{quoted(path)} is no file's path; {_FORMS}")
    size = len(os.fsencode(path))
    if size > _MAX_PATH:
        raise ControlError(
            f"{quoted(path)}: a unix socket's path has at most {_MAX_PATH} bytes, this one {size}; "
            "choose a shorter one"
        )
    return UnixAddress(Path(path))
