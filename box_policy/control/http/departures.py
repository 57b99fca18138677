"""Notices that a peer is gone from which nothing is read at the moment."""

import asyncio
import select
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl


class Departures:
    """Watches sockets for the end of what their peers send. To be used from one event loop alone.

    A transport that doesn't read doesn't see the end either: it would come behind what is unread.
    """

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Callable[[], None]] = {}
        self._closed = False

    def watch(self, fd: int, gone: Callable[[], None]) -> None:
        """Call ``gone``, once, when the peer has closed the connection or its own side of it."""
        if self._closed:
            return
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)
        if fd not in self._watched:
            self._epoll.register(fd, select.EPOLLRDHUP)
        self._watched[fd] = gone

    def forget(self, fd: int) -> None:
        """Watch it no more. To be called before the socket is closed."""
        if self._epoll is not None and self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Watch nothing more."""
        self._closed = True
        self._watched.clear()
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _look(self) -> None:
        if self._epoll is None:
            return
        for fd, _ in self._epoll.poll(0):
            gone = self._watched.get(fd)
            self.forget(fd)
            if gone is not None:
                gone()


class Flow(FlowControl):
    """Tells when a connection is read no more, and when again."""

    def __init__(self, transport: asyncio.Transport, changed: Callable[[bool], None]) -> None:
        super().__init__(transport)
        self._changed = changed

    def pause_reading(self) -> None:
        if not self.read_paused:
            super().pause_reading()
            self._changed(True)

    def resume_reading(self) -> None:
        if self.read_paused:
            super().resume_reading()
            self._changed(False)

    def ended(self) -> None:
        """The connection is gone. Breaks the reference cycle with whoever is told."""
        self._changed = bool  # type: ignore[assignment]
