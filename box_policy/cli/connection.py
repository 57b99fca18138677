"""What a connection to a gate is held to: whose it is, how long it takes, and how long its events are."""

import os
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import httpx

MAX_EVENT: Final = 1 << 20
"""Bytes of one event of the stream."""

_CREDENTIALS: Final = struct.Struct("=iII")
"""``struct ucred`` of unix(7): process, user, group."""


class WrongOwner(Exception):
    """Who listens at a unix socket is neither root nor this user."""

    def __init__(self, user: int) -> None:
        super().__init__(user)
        self.user = user


class Watch:
    """Looks after one connection, in a ``with`` block; httpx calls it at each step, as its ``trace``.

    Before anything is sent through a unix socket it asks the kernel who listens there: a path says nothing
    of that. And it breaks a connection that has had its time, whatever that is busy with: httpx's timeouts
    are for one read each, so who sends a byte now and then would never be late.
    """

    def __init__(self, seconds: float) -> None:
        self.late = False
        """The connection was broken because its time was over."""
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._break)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.endure()

    def endure(self) -> None:
        """From now on the connection may last."""
        self._timer.cancel()

    def __call__(self, step: str, info: Mapping[str, Any]) -> None:
        """Raises WrongOwner."""
        if step not in ("connection.connect_unix_socket.complete", "connection.connect_tcp.complete"):
            return
        stream = info["return_value"]
        connected: socket.socket = stream.get_extra_info("socket")
        self._socket = connected
        try:
            if self.late:
                raise httpx.ConnectTimeout("the time is over")
            if connected.family == socket.AF_UNIX:
                _check_owner(connected)
        except BaseException:
            stream.close()
            raise

    def _break(self) -> None:
        self.late = True
        if self._socket is not None:
            with suppress(OSError):  # it may just have been closed
                self._socket.shutdown(socket.SHUT_RDWR)


def _check_owner(connected: socket.socket) -> None:
    raw = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(raw)
    trusted = {0, os.geteuid()}
    if os.geteuid() == 0:
        # A gate with a user of its own: who owns the directory decides who listens in it anyway.
        trusted.add(Path(connected.getpeername()).parent.stat().st_uid)
    if user not in trusted:
        raise WrongOwner(user)


class WatchedStream(httpx.SyncByteStream):
    """A stream that says so if it ends because its time was over: to read, that looks like any other end."""

    def __init__(self, stream: httpx.SyncByteStream | httpx.AsyncByteStream, watch: Watch) -> None:
        self._stream = _synchronous(stream)
        self._watch = watch

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream
        if self._watch.late:
            raise httpx.ReadTimeout("the time is over")

    def close(self) -> None:
        self._stream.close()


class ShortEvents(httpx.SyncByteStream):
    """A stream whose events end: nothing else bounds what is kept of one."""

    def __init__(self, stream: httpx.SyncByteStream | httpx.AsyncByteStream) -> None:
        self._stream = _synchronous(stream)

    def __iter__(self) -> Iterator[bytes]:
        kept = 0
        before = b""
        for chunk in self._stream:
            text = before + chunk
            # A blank line ends an event; it may be split between two chunks.
            end = max(text.rfind(b"\n\n"), text.rfind(b"\n\r\n"))
            kept = kept + len(chunk) if end < 0 else len(text) - end
            before = text[-2:]
            if kept > MAX_EVENT:
                raise httpx.RemoteProtocolError("an event without end")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _synchronous(stream: httpx.SyncByteStream | httpx.AsyncByteStream) -> httpx.SyncByteStream:
    if not isinstance(stream, httpx.SyncByteStream):
        raise TypeError("the stream of a synchronous response")
    return stream
