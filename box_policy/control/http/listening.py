"""The listening socket of the control endpoint: bound so that nobody else gets at it, at any moment."""

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final

from box_policy.control.http.address import (
    ControlError,
    InheritedAddress,
    ListeningAddress,
    TcpAddress,
    UnixAddress,
)
from box_policy.control.http.socket_lock import SocketLock

BACKLOG: Final = 128
"""Connections that wait to be accepted."""
_PROBE_TIMEOUT: Final = 1.0


class Listening:
    """A bound, listening socket, and what it leaves in the file system.

    Raises:
        ControlError: it can't be bound, or must not be. The message says what to do.
    """

    def __init__(self, address: ListeningAddress) -> None:
        self.address = address
        """Where it listens; with the port it was given if any would do."""
        self._file: tuple[int, int] | None = None
        self._lock: SocketLock | None = None
        try:
            if isinstance(address, UnixAddress):
                self.socket = self._bind_unix(address.path)
            elif isinstance(address, InheritedAddress):
                self.socket = _inherited(address.fd)
            else:
                self.socket = self._bind_tcp(address)
        except OSError as error:
            raise ControlError(f"can't listen on {address}: {error.strerror or error}") from None

    def close(self) -> None:
        """Stop listening; remove the socket's file, unless somebody has put another in its place."""
        self.socket.close()
        if isinstance(self.address, UnixAddress) and self._file is not None:
            try:
                if _identity(self.address.path) == self._file:
                    self.address.path.unlink()
            except OSError:
                pass  # somebody has removed it, or taken the directory away
            self._file = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _bind_tcp(self, address: TcpAddress) -> socket.socket:
        family = socket.AF_INET6 if address.host.version == 6 else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # asyncio sets it only on sockets that name their protocol, which accepted ones here do not.
            # Without it an answer's second packet waits 40 ms for the first to be acknowledged.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind((str(address.host), address.port))
            sock.listen(BACKLOG)
            sock.setblocking(False)
            self.address = TcpAddress(address.host, sock.getsockname()[1])
            return sock
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:
                raise ControlError(
                    f"{address} is in use: stop what listens there, or choose another port"
                ) from None
            if error.errno == errno.EADDRNOTAVAIL:
                raise ControlError(f"{address} is not an address of this host") from None
            raise

    def _bind_unix(self, path: Path) -> socket.socket:
        _make_directory(path.parent)
        self._lock = SocketLock(path)
        try:
            _make_way(path)
            return self._bind_locked(path)
        except BaseException:
            self._lock.release()
            raise

    def _bind_locked(self, path: Path) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Linux gives the file the mode of the socket's own inode: 0600 from its first moment, without
            # a umask, which every thread of the process would share.
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(str(path))
            self._file = _identity(path)
            if stat.S_IMODE(path.lstat().st_mode) & 0o177:
                path.unlink()
                raise ControlError(f"{path}: this file system gives sockets no mode; choose another place")
            sock.listen(BACKLOG)
            sock.setblocking(False)
            return sock
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise ControlError(f"{path}: another process has just begun to listen there") from None
            raise


def _inherited(fd: int) -> socket.socket:
    """Take over a listening socket. If it isn't one, it stays what and whose it was."""
    if fd < 0 or not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise ControlError(f"file descriptor {fd} is not a socket")
    sock = socket.socket(fileno=fd)
    try:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ControlError(f"file descriptor {fd} is not a unix stream socket")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ControlError(f"file descriptor {fd} is a socket that does not listen")
    except BaseException:
        sock.detach()
        raise
    # It came to be inherited once: no program that is started from here, a box's above all, gets it too.
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def _make_directory(directory: Path) -> None:
    """Make the directory if only it is missing."""
    try:
        directory.mkdir(0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise ControlError(f"{directory.parent} does not exist: create it, or choose another place") from None
    except PermissionError:
        raise ControlError(
            f"{directory} does not exist and can't be created here: choose another place"
        ) from None


def _make_way(path: Path) -> None:
    """Remove a socket that a dead process has left. Nothing else is removed."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ControlError(f"{path} exists and is not a socket: remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except (BlockingIOError, TimeoutError):
            pass  # its backlog is full, so it is alive
    raise ControlError(f"{path} is in use: another process answers there; stop it, or choose another path")
