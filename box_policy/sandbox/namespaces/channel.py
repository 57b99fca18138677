"""A message socket in the caller's event loop. Nothing here blocks."""

import asyncio
import contextlib
import errno
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from box_policy.sandbox.namespaces import messages
from box_policy.sandbox.namespaces.messages import DescriptorsLostError, Message, MessageError

MOST_UNSENT = 1000
"""Messages that wait for the other side to read."""
MOST_UNSENT_BYTES = 4 << 20
_READ_A_TURN = 16
"""Messages that one turn of the loop takes. Who has taken a box's pid 1 sends without end."""
_RETRY = 0.05
# What the kernel lacks for a while: room for descriptors in flight (unix(7)), memory.
_PASSING = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)


class Channel:
    """Sends messages in order; calls ``on_message`` for each received, ``on_end`` once, at the last.

    The other side is trusted no further than needed: a datagram that is no message ends the channel.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Message, list[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._unsent_bytes = 0
        self._retry: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._read, _READ_A_TURN)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send, or queue until the other side has read more. The descriptors stay the caller's.

        MessageError if the message is too long, OSError if it can't be sent, or too many wait already. If
        the other side is gone nothing happens: the end of the channel tells.
        """
        self._send(messages.encode(message), fds, MOST_UNSENT)

    def notify(self, message: Message, *, always: bool) -> None:
        """Send what has the same effect however often it is sent: once, if it waits already.

        Where too many wait it is dropped, unless it must arrive ``always``.
        """
        data = messages.encode(message)
        if not any(waiting == data for waiting, _ in self._unsent):
            with contextlib.suppress(OSError):
                self._send(data, (), None if always else MOST_UNSENT)

    def _send(self, data: bytes, fds: Sequence[int], most: int | None) -> None:
        if self._sock.fileno() < 0:
            return
        try:
            if not self._unsent and self._try_send(data, fds):
                return
        except OSError as error:
            if fds or error.errno not in _PASSING:
                raise
        is_full = most is not None and (
            len(self._unsent) >= most or self._unsent_bytes + len(data) > MOST_UNSENT_BYTES
        )
        if is_full:
            raise OSError(errno.ENOBUFS, "the other side leaves too much unread")
        copies: list[int] = []
        try:
            copies.extend(os.dup(fd) for fd in fds)
        except OSError:
            messages.close_all(copies)
            raise
        if not self._unsent:
            self._loop.add_writer(self._sock.fileno(), self._write)
        self._unsent.append((data, copies))
        self._unsent_bytes += len(data)

    def read(self) -> None:
        """Receive all that has arrived. For when nobody sends any more: it goes on until there is nothing."""
        self._read(None)

    def _read(self, most: int | None) -> None:
        turns = itertools.repeat(None) if most is None else itertools.repeat(None, most)
        for _ in turns:
            if self._sock.fileno() < 0:
                return
            try:
                received = messages.receive(self._sock)
            except (BlockingIOError, InterruptedError):
                return
            except DescriptorsLostError as error:
                received = error.message, []
            except (OSError, MessageError):
                received = None
            if received is None:
                self.close()
                self._on_end()
                return
            self._on_message(*received)

    def close(self) -> None:
        """Close the socket; the other side sees end of file."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        if self._retry is not None:
            self._retry.cancel()
        for _, fds in self._unsent:
            messages.close_all(fds)
        self._unsent.clear()
        self._unsent_bytes = 0

    def _try_send(self, data: bytes, fds: Sequence[int]) -> bool:
        try:
            self._sock.sendmsg([data], messages.ancillary(fds), socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return False
        except (BrokenPipeError, ConnectionResetError):
            pass
        return True

    def _write(self) -> None:
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                if not self._try_send(data, fds):
                    return
            except OSError as error:
                if error.errno in _PASSING:
                    self._loop.remove_writer(self._sock.fileno())
                    self._retry = self._loop.call_later(_RETRY, self._try_again)
                else:
                    self.close()
                    self._on_end()
                return
            self._unsent.popleft()
            self._unsent_bytes -= len(data)
            messages.close_all(fds)
        self._loop.remove_writer(self._sock.fileno())

    def _try_again(self) -> None:
        self._loop.add_writer(self._sock.fileno(), self._write)
