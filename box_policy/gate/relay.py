"""Carries bytes between two sockets, in the kernel where there are many.

A direction moves small data with ``recv_into`` and ``send`` on one buffer that all share. Once a read
fills that buffer the direction turns to ``splice(2)`` through a pooled pipe (splice between two sockets
needs one). A pipe belongs to a direction only while it holds bytes, so an idle connection owns neither
buffer nor pipe.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

from box_policy.gate.poller import ERROR, HANG_UP, QUIET, READ, WRITE, Poller
from box_policy.gate.reset import reset
from box_policy.policy.reasons import Reason

BUFFER: Final = 64 * 1024
PIPE: Final = 1024 * 1024
POOLED_PIPES: Final = 16
_SIOCOUTQNSD: Final = 0x894B  # <linux/sockios.h>: bytes queued and not yet sent
_NOTHING: Final = struct.pack("i", 0)
_TCP_CLOSE: Final = 7  # <net/tcp_states.h>
_SPLICE_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Direction:
    """One way of a pair: from its source to its sink. Owns the source's descriptor in the poller."""

    __slots__ = (
        "bulk",
        "carried",
        "finished",
        "in_pipe",
        "listener",
        "pair",
        "pending",
        "pipe",
        "reverse",
        "sink",
        "source",
        "spent",
    )

    pair: "Pair"
    reverse: "Direction"

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source = source
        self.sink = sink
        self.carried = 0
        self.pending: bytes | None = None  # read, and not yet taken by the sink
        self.pipe: tuple[int, int] | None = None  # holds bytes that the sink has not yet taken
        self.in_pipe = 0
        self.bulk = False
        self.spent = False  # the source has ended
        self.finished = False  # and all that it sent is with the sink, which knows that there is no more
        self.listener: Callable[[memoryview], bool] | None = None

    @property
    def blocked(self) -> bool:
        """Waits for the sink to take more."""
        return self.pending is not None or self.in_pipe > 0

    def interest(self) -> int:
        """What the source's descriptor has to be watched for: it is the reverse direction's sink as well."""
        events = 0
        if not self.spent and not self.blocked:
            events |= READ
        if self.reverse.blocked:
            events |= WRITE
        return events or QUIET

    def ready(self, events: int) -> None:
        pair = self.pair
        pair.last_activity = pair.relay.poller.now
        if events & WRITE:
            pair.relay.flush(self.reverse)
        if pair.closed:
            return
        if events & (READ | HANG_UP | ERROR) and not self.spent and not self.blocked:
            pair.relay.pump(self)
        elif events & ERROR:
            pair.close(Reason.RESET)

    def failed(self, error: Exception) -> None:
        self.pair.close(Reason.INTERNAL_ERROR)


class Pair:
    """Two connected sockets whose bytes are carried to each other."""

    __slots__ = ("closed", "down", "last_activity", "on_close", "relay", "up")

    def __init__(
        self,
        relay: "Relay",
        client: socket.socket,
        server: socket.socket,
        on_close: Callable[["Pair", Reason], None],
    ) -> None:
        self.relay = relay
        self.on_close = on_close
        self.closed = False
        self.last_activity = relay.poller.now
        self.up = up = Direction(client, server)
        self.down = down = Direction(server, client)
        up.pair = down.pair = self
        up.reverse, down.reverse = down, up

    def update(self) -> None:
        """Watch both descriptors for what the state of the directions asks for."""
        for direction in (self.up, self.down):
            self.relay.poller.watch(direction.source.fileno(), direction.interest(), direction)

    def rest(self) -> None:
        """Wait for nothing more: both sides have finished."""
        for direction in (self.up, self.down):
            self.relay.poller.unregister(direction.source.fileno())

    def unsent(self) -> bool:
        """Does the kernel still hold bytes that it has not sent?"""
        return _unsent(self.up.source) or _unsent(self.down.source)

    def close(self, reason: Reason) -> None:
        """End it: in order after ``CLOSED``, with RST both ways after any other reason."""
        if self.closed:
            return
        self.closed = True
        for direction in (self.up, self.down):
            self.relay.poller.unregister(direction.source.fileno())
            self.relay.drop_pipe(direction)
        for direction in (self.up, self.down):
            if reason is Reason.CLOSED:
                direction.source.close()
            else:
                reset(direction.source)
        self.relay.closed(self)
        self.on_close(self, reason)


class Relay:
    """Carries any number of pairs on one poller."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._pipes: list[tuple[int, int]] = []
        self.pairs: set[Pair] = set()
        self._emptying: set[Pair] = set()

    def start(
        self,
        client: socket.socket,
        server: socket.socket,
        first_bytes: bytes | bytearray,
        on_close: Callable[[Pair, Reason], None],
        listener: Callable[[memoryview], bool] | None = None,
    ) -> Pair:
        """Carry bytes between two connected, non-blocking sockets, watched already or not.

        ``first_bytes`` were read from the client before. Raises OSError if the server refuses those. The
        ``listener`` is given what the client sends from now on, for as long as it wants more.
        """
        pair = Pair(self, client, server, on_close)
        up = pair.up
        up.listener = listener
        sent = 0
        if first_bytes:
            try:
                sent = server.send(first_bytes)
            except BlockingIOError:
                pass
            up.carried = len(first_bytes)
            if sent < len(first_bytes):
                up.pending = bytes(first_bytes[sent:])
        pair.update()
        self.pairs.add(pair)
        return pair

    def close_idle(self, since: float) -> None:
        """End the pairs on which nothing has moved since then (monotonic clock)."""
        for pair in [pair for pair in self.pairs if pair.last_activity < since]:
            pair.close(Reason.IDLE)

    def closed(self, pair: Pair) -> None:
        self.pairs.discard(pair)
        self._emptying.discard(pair)

    def pump(self, direction: Direction) -> None:
        """The source is readable: take what it has and give it to the sink."""
        try:
            if direction.bulk:
                self._splice(direction)
            else:
                self._copy(direction)
        except BlockingIOError:
            pass
        except OSError:
            direction.pair.close(Reason.RESET)

    def _copy(self, direction: Direction) -> None:
        count = direction.source.recv_into(self._buffer)
        if count == 0:
            self._spend(direction)
            return
        direction.carried += count
        if direction.listener is not None and not direction.listener(self._view[:count]):
            direction.listener = None
        sent = 0
        try:
            sent = direction.sink.send(self._view[:count])
        except BlockingIOError:
            pass
        if sent < count:
            direction.pending = bytes(self._view[sent:count])
            direction.pair.update()
        if count == BUFFER and direction.listener is None:
            direction.bulk = True

    def _splice(self, direction: Direction) -> None:
        """Only ``recv`` tells the end of the stream. At a TCP urgent mark splice moves nothing, for ever,
        or says that the stream has ended; reading takes the stream past the mark."""
        try:
            pipe = self._take_pipe()
        except OSError:
            self._copy(direction)  # no descriptors left: it takes longer, that is all
            return
        try:
            count = os.splice(direction.source.fileno(), pipe[1], PIPE, flags=_SPLICE_FLAGS)
        except BlockingIOError:
            count = 0
        except OSError:
            self._give_back(pipe)  # nothing went in
            raise
        if count == 0:
            self._give_back(pipe)
            direction.bulk = False
            self._copy(direction)
            return
        direction.carried += count
        direction.pipe = pipe
        direction.in_pipe = count
        try:
            self._empty_pipe(direction)
        except BlockingIOError:
            direction.pair.update()

    def flush(self, direction: Direction) -> None:
        """The sink takes bytes again."""
        try:
            if direction.pending is not None:
                sent = direction.sink.send(direction.pending)
                direction.pending = direction.pending[sent:] or None
            elif direction.in_pipe:
                self._empty_pipe(direction)
            if direction.blocked:
                return
            if direction.spent:
                self._finish(direction)
            if not direction.pair.closed:
                direction.pair.update()
        except BlockingIOError:
            pass
        except OSError:
            direction.pair.close(Reason.RESET)

    def _empty_pipe(self, direction: Direction) -> None:
        pipe = direction.pipe
        if pipe is None:
            return
        while direction.in_pipe:
            direction.in_pipe -= os.splice(
                pipe[0], direction.sink.fileno(), direction.in_pipe, flags=_SPLICE_FLAGS
            )
        direction.pipe = None
        self._give_back(pipe)

    def _spend(self, direction: Direction) -> None:
        """The source has sent its FIN, and everything before it has been read."""
        direction.spent = True
        if not direction.blocked:
            self._finish(direction)
        if not direction.pair.closed:
            direction.pair.update()

    def _finish(self, direction: Direction) -> None:
        direction.finished = True
        if not direction.reverse.finished:
            direction.sink.shutdown(socket.SHUT_WR)
        elif _unsent(direction.sink) or _unsent(direction.source):
            # Closed now, the kernel would go on sending what is queued, and nobody could cut that any more.
            direction.sink.shutdown(socket.SHUT_WR)
            direction.pair.rest()
            self._emptying.add(direction.pair)
        else:
            direction.pair.close(Reason.CLOSED)

    def close_emptied(self) -> None:
        """Close the pairs of which the kernel has sent the last byte. To be called a few times a second."""
        for pair in [pair for pair in self._emptying if not pair.unsent()]:
            pair.close(Reason.CLOSED)

    def _take_pipe(self) -> tuple[int, int]:
        if self._pipes:
            return self._pipes.pop()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE)
        except OSError:
            pass  # over the user's share of pipe memory: the default size works, at more system calls
        return pipe

    def _give_back(self, pipe: tuple[int, int]) -> None:
        """Only ever an empty one: what is left in a pipe must not reach another connection."""
        if len(self._pipes) < POOLED_PIPES:
            self._pipes.append(pipe)
        else:
            _close_pipe(pipe)

    def drop_pipe(self, direction: Direction) -> None:
        """Let go of a direction's pipe and of the bytes in it."""
        if direction.pipe is not None:
            _close_pipe(direction.pipe)
            direction.pipe = None
            direction.in_pipe = 0

    def close(self) -> None:
        """Reset every pair."""
        for pair in list(self.pairs):
            pair.close(Reason.BOX_CLOSED)
        for pipe in self._pipes:
            _close_pipe(pipe)
        self._pipes.clear()


def _unsent(sock: socket.socket) -> bool:
    if fcntl.ioctl(sock.fileno(), _SIOCOUTQNSD, _NOTHING) == _NOTHING:
        return False
    # Of a broken connection, what is left will never be sent.
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSE


def _close_pipe(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    os.close(pipe[1])
