"""Accepts a box's connections, finds out what each claims, judges it, and dials what was judged.

The lane knows nothing of mitmproxy. It is given a way to resolve names, a place for records, and someone
to hand plain HTTP over to. It runs on its own poller; whatever it waits for comes back as a call.

A connection goes through four states, each an object of its own:
:class:`~box_policy.gate.arrival.Arrival` until there is a verdict, then either a
:class:`~box_policy.gate.dial.Dial` and a relayed pair, or a :class:`~box_policy.gate.farewell.Farewell`.
"""

import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Protocol

from box_policy.audit import records
from box_policy.audit.sinks import Audit
from box_policy.gate.arrival import Arrival
from box_policy.gate.boxes import GatedBox
from box_policy.gate.claim import HandedOver, failure_record, limit_record
from box_policy.gate.descriptors import Descriptors
from box_policy.gate.destination import Destination
from box_policy.gate.egress import Egress
from box_policy.gate.failures import Fallible, attempt, every
from box_policy.gate.limits import OUT_OF_RESOURCES, Limits
from box_policy.gate.poller import QUIET, READ, Poller
from box_policy.gate.relay import Relay
from box_policy.gate.reset import reset
from box_policy.gate.resolution import Resolution
from box_policy.policy.reasons import Reason

log = logging.getLogger(__name__)

ACCEPTS_A_TURN: Final = 8
IDLE_SWEEP: Final = 30.0
"""Seconds between two looks for idle connections."""

type Resolve = Callable[[str, Callable[[Resolution], None], Callable[[], bool], str], None]
"""Resolve a name and call back once, at once or later, on the lane's own loop. The third argument says
whether that is still wanted, and allowed; the last is the box on whose behalf it is."""


class Mortal(Fallible, Protocol):
    """Something that has only so much time."""

    def overdue(self) -> None:
        """Its time is over."""

    def cut(self, reason: Reason) -> None:
        """End it at once."""


class Deadlines:
    """Objects that all get the same time, in the order in which it ends."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadlines: dict[Mortal, float] = {}

    def start(self, mortal: Mortal, now: float) -> None:
        self._deadlines[mortal] = now + self._seconds

    def stop(self, mortal: Mortal) -> None:
        self._deadlines.pop(mortal, None)

    def expire(self, now: float) -> list[Mortal]:
        """Those whose time is over. They are told by the caller, once: their time no longer runs."""
        expired = []
        for mortal, deadline in self._deadlines.items():
            if deadline > now:
                break
            expired.append(mortal)
        for mortal in expired:
            del self._deadlines[mortal]
        return expired

    def __iter__(self) -> Iterator[Mortal]:
        return iter(list(self._deadlines))


def _expire(deadlines: Deadlines, now: float) -> None:
    for mortal in deadlines.expire(now):
        attempt(mortal, mortal.overdue)


class Lane:
    """The accept, peek, judge, dial and relay loop."""

    def __init__(
        self,
        *,
        resolve: Resolve,
        audit: Audit,
        hand_over: Callable[[HandedOver], None],
        limits: Limits | None = None,
        descriptors: Descriptors | None = None,
        egress: Egress | None = None,
    ) -> None:
        self.resolve = resolve
        self.audit = audit
        self._take_http = hand_over
        self.limits = limits or Limits()
        self.descriptors = descriptors or Descriptors.of_process()
        self.egress = egress or Egress()
        self.poller = Poller()
        self.relay = Relay(self.poller, self.descriptors.plenty)
        self.arriving = Deadlines(self.limits.verdict_timeout)
        self.connecting = Deadlines(self.limits.connect_timeout)
        self.leaving = Deadlines(self.limits.linger)
        self.overhearing = Deadlines(self.limits.verdict_timeout)
        self._listeners: dict[socket.socket, Listener] = {}
        self._boxes: set[GatedBox] = set()
        self._spare = _spare_descriptor()
        self._next_idle_sweep = 0.0

    def fileno(self) -> int:
        """Readable when :meth:`run_ready` has something to do."""
        return self.poller.fileno()

    def run_ready(self) -> None:
        """Do what can be done now; never waits."""
        self.poller.run_ready()

    def listen(self, sock: socket.socket, box: GatedBox) -> None:
        """Serve a listening socket on behalf of a box. The caller keeps owning the socket."""
        sock.setblocking(False)
        self._enter(box)
        listener = Listener(self, sock, box)
        self._listeners[sock] = listener
        box.poller.watch(sock.fileno(), READ, listener)

    def forget(self, sock: socket.socket) -> None:
        """Stop serving a listening socket; to be called before it is closed."""
        listener = self._listeners.pop(sock, None)
        if listener is not None:
            listener.box.poller.unregister(sock.fileno())

    def adopt(
        self, sock: socket.socket, received: bytes, box: GatedBox, destination: Destination | None = None
    ) -> None:
        """Take over an accepted connection, with what was read from it. It is judged like any other.

        At one of the box's caps it is reset instead.
        """
        try:
            excess = self._excess(sock, box)
            if excess:
                reset(sock)
                self.record_limit(box, excess)
                return
            self._enter(box)
            sock.setblocking(False)
            arrival = Arrival(self, sock, box, destination)
        except Exception:
            log.exception("a connection failed in the gate and is closed")
            reset(sock)
            self.audit.note(lambda: failure_record(box, records.Protocol.TCP))
            return
        attempt(arrival, arrival.begin, received)

    def hand_over(self, handed_over: HandedOver) -> None:
        """Give a connection to whoever speaks HTTP. At the box's cap it is reset instead."""
        box = handed_over.claim.box
        if box.http_connections >= self.limits.http_connections:
            reset(handed_over.sock)
            self.record_limit(box, "HTTP connections")
        else:
            self._take_http(handed_over)

    def leave(self, box: GatedBox) -> None:
        """Forget a box of which nothing is open any more, listeners neither."""
        if box in self._boxes:
            self._boxes.discard(box)
            every(lambda: self.poller.unregister(box.poller.fileno()))
        box.poller.close()

    def sweep(self) -> None:
        """End what has run out of time. To be called a few times a second."""
        now = self.poller.now = time.monotonic()
        timed = (self.arriving, self.connecting, self.leaving, self.overhearing)
        every(
            *(partial(_expire, deadlines, now) for deadlines in timed),
            *(listener.resume for listener in self._listeners.values()),
            *(partial(box.shed, self.limits.buffered) for box in self._boxes),
            self.relay.close_emptied,
            partial(self._close_idle, now),
        )

    def _close_idle(self, now: float) -> None:
        if now >= self._next_idle_sweep:
            self._next_idle_sweep = now + min(IDLE_SWEEP, self.limits.idle_timeout / 4)
            self.relay.close_idle(now - self.limits.idle_timeout)

    def _excess(self, sock: socket.socket, box: GatedBox) -> str:
        """What the box has too many of to have another connection; empty if nothing."""
        if len(box.live) >= self.limits.connections:
            return "connections"
        if box.pending >= self.limits.pending:
            return "connections without a verdict"
        if not self.descriptors.admit(sock.fileno(), len(box.live)):
            return "descriptors"
        return "" if box.new_connections.take(time.monotonic()) else "new connections"

    def record_limit(self, box: GatedBox, what: str) -> None:
        """Record that a box is at one of its caps, unless that was done within this second."""
        if box.may_record_limit(time.monotonic(), what):
            self.audit.note(lambda: limit_record(box, records.Protocol.TCP, what))

    def refuse_next(self, sock: socket.socket) -> None:
        """Reset the next connection of a listening socket for which there is no descriptor: its client would
        wait otherwise. Raises OSError if that is in vain."""
        self._give_up_spare()
        try:
            reset(sock.accept()[0])
        finally:
            self._spare = _spare_descriptor()

    def _give_up_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _enter(self, box: GatedBox) -> None:
        if box not in self._boxes:
            self.poller.watch(box.poller.fileno(), READ, box.poller)
            self._boxes.add(box)

    def close(self) -> None:
        """Forget every listener and reset every connection. Listening sockets stay their owner's."""
        for sock in list(self._listeners):
            self.forget(sock)
        for deadlines in (self.arriving, self.connecting, self.leaving):
            for mortal in deadlines:
                attempt(mortal, mortal.cut, Reason.BOX_CLOSED)
        self.relay.close()
        self.poller.close()
        self._give_up_spare()


class Listener:
    """A listening socket in the poller."""

    def __init__(self, lane: Lane, sock: socket.socket, box: GatedBox) -> None:
        self.box = box
        self._lane = lane
        self._sock = sock
        self._paused = False

    def ready(self, events: int) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    self._refuse(error)
                elif error.errno == errno.EINVAL:
                    # It listens no more: who rules in its namespace can end it. It would be ready for ever.
                    self._lane.forget(self._sock)
                return  # anything else was the one connection's own trouble
            self._lane.adopt(sock, b"", self.box)

    def failed(self, error: Exception) -> None:
        """Connections wait in the backlog until the next sweep."""
        self._paused = True
        self.box.poller.watch(self._sock.fileno(), QUIET, self)

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self.box.poller.watch(self._sock.fileno(), READ, self)

    def _refuse(self, error: OSError) -> None:
        """Out of descriptors or memory."""
        self._lane.record_limit(self.box, "descriptors")
        try:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise error
            self._lane.refuse_next(self._sock)
        except OSError as again:
            self.failed(again)


def _spare_descriptor() -> int | None:
    """One to be given up when there is no other. None if there is none."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
