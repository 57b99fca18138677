"""Closes a connection so that a peer that is still sending can read its answer."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

LINGER: Final = 2.0
"""Seconds for which what nobody wants is still taken in."""
LINGER_SIZE: Final = 16 * 1024 * 1024
"""Bytes of it."""


class LingeringTransport(asyncio.Transport):
    """A transport whose :meth:`close` ends only its own side, as long as the peer may still be sending.

    To close a socket that holds unread data resets the connection, and many a client that is reset never
    looks at the answer that it was sent before. What comes is dropped as it is: nothing parses it.
    """

    def __init__(self, inner: asyncio.Transport, unread: Callable[[], bool]) -> None:
        """Stand before a transport; ``unread`` says whether its peer may still be sending."""
        super().__init__()
        self._inner = inner
        self._unread = unread
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self.lingering = False
        """Is closed, and what comes is to be dropped."""

    def close(self) -> None:
        if self.is_closing():
            return
        if not self._unread():
            self._inner.close()
            return
        self.lingering = True
        self._timer = asyncio.get_running_loop().call_later(LINGER, self._inner.abort)
        self._inner.write_eof()
        self._inner.resume_reading()

    def drop(self, size: int) -> None:
        """So many bytes have come, and are forgotten."""
        self._dropped += size
        if self._dropped > LINGER_SIZE:
            self._inner.abort()

    def ended(self) -> None:
        """The connection is gone. Breaks the reference cycle with whoever knows what is unread."""
        self._unread = bool
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def is_closing(self) -> bool:
        return self.lingering or self._inner.is_closing()

    def abort(self) -> None:
        self._inner.abort()

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        if not self.lingering:
            self._inner.write(data)

    def pause_reading(self) -> None:
        if not self.lingering:
            self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._inner.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._inner.get_extra_info(name, default)
