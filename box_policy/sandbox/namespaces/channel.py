"""A message socket in the caller's event loop. Nothing here blocks."""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from box_policy.sandbox.namespaces import messages
from box_policy.sandbox.namespaces.messages import Message, MessageError


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
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self.read)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send, or queue until the other side has read more. The descriptors stay the caller's.

        MessageError if the message is too long. If the other side is gone nothing happens: the end
        of the channel tells.
        """
        data = messages.encode(message)
        if self._sock.fileno() < 0:
            return
        if self._unsent or not self._try_send(data, fds):
            if not self._unsent:
                self._loop.add_writer(self._sock.fileno(), self._write)
            self._unsent.append((data, [os.dup(fd) for fd in fds]))

    def read(self) -> None:
        """Receive all that has arrived."""
        while self._sock.fileno() >= 0:
            try:
                received = messages.receive(self._sock)
            except (BlockingIOError, InterruptedError):
                return
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
        for _, fds in self._unsent:
            messages.close_all(fds)
        self._unsent.clear()

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
            except OSError:
                self.close()
                self._on_end()
                return
            self._unsent.popleft()
            messages.close_all(fds)
        self._loop.remove_writer(self._sock.fileno())
