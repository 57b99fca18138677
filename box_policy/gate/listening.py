"""Listening sockets on this host's own addresses."""

import errno
import socket
from typing import Final

_BACKLOG: Final = 4096


def listen(host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[socket.socket]:
    """Sockets bound to a host's address, or to all of both families if it is empty.

    One socket a family: a connection's original destination is asked for by family. Raises OSError that
    names the address.
    """
    places = [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]  # noqa: S104 - as mitmproxy does
    if host:
        places = [(socket.AF_INET6 if ":" in host else socket.AF_INET, host)]
    socks: list[socket.socket] = []
    try:
        for family, address in places:
            try:
                sock = socket.socket(family, kind)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and socks:
                    continue  # this host has no IPv6
                raise
            socks.append(sock)
            if kind == socket.SOCK_STREAM:
                # Never of UDP: whoever else asks for it could bind the same address, and take what comes.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((address, port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL and not host and len(socks) > 1:
                    socks.pop().close()  # IPv6 is switched off
                    continue
                raise OSError(
                    error.errno, f"can't listen on {address} port {port}: {error.strerror}"
                ) from error
            port = sock.getsockname()[1]
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
                sock.listen(_BACKLOG)
            sock.setblocking(False)
    except BaseException:
        for sock in socks:
            sock.close()
        raise
    return socks
