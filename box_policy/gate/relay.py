"""Carries bytes between two sockets, in the kernel where there are many.

A direction moves small data with ``recv_into`` and ``send`` on one buffer that all share. Once a read
fills that buffer the direction turns to ``splice(2)`` through a pooled pipe (splice between two sockets
needs one). A pipe belongs to a direction only while it holds bytes, so an idle connection owns neither
buffer nor pipe.

A pair is roomy or it isn't. The buffers of a roomy one grow as the kernel sees fit, to many megabytes if a
side is slow to read; those of the others stay small. Which pairs may be roomy is the caller's to say.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Final

from box_policy.gate.failures import attempt, every
from box_policy.gate.poller import ERROR, HANG_UP, QUIET, READ, WRITE, Poller
from box_policy.gate.reset import reset
from box_policy.gate.socket_memory import SMALL, keep_small, socket_memory
from box_policy.policy.reasons import Reason

BUFFER: Final = 64 * 1024
PIPE: Final = 1024 * 1024
POOLED_PIPES: Final = 16
SMALL_READ: Final = 16 * 1024
"""Bytes that are read at once for a pair that isn't roomy: they are kept until the other side takes them."""
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

    __slots__ = ("closed", "down", "last_activity", "on_close", "poller", "relay", "roomy", "up")

    def __init__(
        self,
        relay: "Relay",
        client: socket.socket,
        server: socket.socket,
        on_close: Callable[["Pair", Reason], None],
        poller: Poller,
        roomy: bool,
    ) -> None:
        self.relay = relay
        self.on_close = on_close
        self.poller = poller
        self.roomy = roomy
        self.closed = False
        self.last_activity = relay.poller.now
        self.up = up = Direction(client, server)
        self.down = down = Direction(server, client)
        up.pair = down.pair = self
        up.reverse, down.reverse = down, up

    def update(self) -> None:
        """Watch both descriptors for what the state of the directions asks for."""
        for direction in (self.up, self.down):
            self.poller.watch(direction.source.fileno(), direction.interest(), direction)

    def rest(self) -> None:
        """Wait for nothing more: both sides have finished."""
        for direction in (self.up, self.down):
            self.poller.unregister(direction.source.fileno())

    def buffered(self) -> int:
        """Bytes on their way from one side to the other: what they take up, in the kernel too."""
        up, down = self.up, self.down
        if up.carried + down.carried < SMALL and not (up.blocked or down.blocked):
            return 0  # not worth two system calls: most pairs are idle
        kept = sum(way.in_pipe + len(way.pending or b"") for way in (up, down))
        return kept + socket_memory(up.source) + socket_memory(down.source)

    def close(self, reason: Reason) -> None:
        """End it: in order after ``CLOSED``, with RST both ways after any other reason."""
        if self.closed:
            return
        self.closed = True
        relay, up, down = self.relay, self.up, self.down
        client, server = up.source, down.source
        relay.pairs.discard(self)
        relay.emptying.discard(self)
        every(
            partial(self.poller.unregister, client.fileno()),
            partial(self.poller.unregister, server.fileno()),
            partial(relay.drop_pipe, up),
            partial(relay.drop_pipe, down),
            client.close if reason is Reason.CLOSED else partial(reset, client),
            server.close if reason is Reason.CLOSED else partial(reset, server),
            partial(self.on_close, self, reason),
        )

    def close_emptied(self) -> None:
        """Close it in order, once the kernel has sent the last byte."""
        if not (_unsent(self.up.source) or _unsent(self.down.source)):
            self.close(Reason.CLOSED)


class Relay:
    """Carries any number of pairs on one poller."""

    def __init__(self, poller: Poller, may_use: Callable[[int], bool] = lambda fd: True) -> None:
        """``may_use`` says whether a descriptor may be a pipe's. Without pipes all works, but slower."""
        self.poller = poller
        self._may_use = may_use
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._pipes: list[tuple[int, int]] = []
        self.pairs: set[Pair] = set()
        self.emptying: set[Pair] = set()
        """Both sides have finished; the kernel is still sending."""

    def start(
        self,
        client: socket.socket,
        server: socket.socket,
        first_bytes: bytes | bytearray,
        on_close: Callable[[Pair, Reason], None],
        listener: Callable[[memoryview], bool] | None = None,
        *,
        poller: Poller | None = None,
        roomy: bool = True,
    ) -> Pair:
        """Carry bytes between two connected, non-blocking sockets, watched already or not.

        ``first_bytes`` were read from the client before. Raises OSError if the server refuses those. The
        ``listener`` is given what the client sends from now on, for as long as it wants more, before
        the server is. It may close the pair.
        """
        pair = Pair(self, client, server, on_close, poller or self.poller, roomy)
        if not roomy:
            keep_small(client)
            keep_small(server)
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
            attempt(pair.up, pair.close, Reason.IDLE)

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
        roomy = direction.pair.roomy
        count = direction.source.recv_into(self._buffer, BUFFER if roomy else SMALL_READ)
        if count == 0:
            self._spend(direction)
            return
        direction.carried += count
        if direction.listener is not None and not direction.listener(self._view[:count]):
            direction.listener = None
            if direction.pair.closed:
                return
        sent = 0
        try:
            sent = direction.sink.send(self._view[:count])
        except BlockingIOError:
            pass
        if sent < count:
            direction.pending = bytes(self._view[sent:count])
            direction.pair.update()
        if count == BUFFER and roomy and direction.listener is None:
            direction.bulk = True

    def _splice(self, direction: Direction) -> None:
        """Only ``recv`` tells the end of the stream. At a TCP urgent mark splice moves nothing, for ever,
        or says that the stream has ended; reading takes the stream past the mark."""
        try:
            pipe = direction.pipe = self._take_pipe()
        except OSError:
            self._copy(direction)  # no descriptors left: it takes longer, that is all
            return
        try:
            count = os.splice(direction.source.fileno(), pipe[1], PIPE, flags=_SPLICE_FLAGS)
        except BlockingIOError:
            count = 0
        if count == 0:
            self._give_back(direction, pipe)
            direction.bulk = False
            self._copy(direction)
            return
        direction.carried += count
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
        self._give_back(direction, pipe)

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
            self.emptying.add(direction.pair)
        else:
            direction.pair.close(Reason.CLOSED)

    def close_emptied(self) -> None:
        """Close the pairs of which the kernel has sent the last byte. To be called a few times a second."""
        for pair in list(self.emptying):
            attempt(pair.up, pair.close_emptied)

    def _take_pipe(self) -> tuple[int, int]:
        if self._pipes:
            return self._pipes.pop()
        pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        if not self._may_use(pipe[1]):
            _close_pipe(pipe)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        try:
            fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE)
        except OSError:
            pass  # over the user's share of pipe memory: the default size works, at more system calls
        return pipe

    def _give_back(self, direction: Direction, pipe: tuple[int, int]) -> None:
        """Only ever an empty one: what is left in a pipe must not reach another connection."""
        direction.pipe = None
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
            attempt(pair.up, pair.close, Reason.BOX_CLOSED)
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
