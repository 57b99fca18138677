"""Accepts a box's connections, finds out what each claims, judges it, and dials what was judged.

The lane knows nothing of mitmproxy. It is given a way to resolve names, a place for records, and someone
to hand plain HTTP over to. It runs on its own poller; whatever it waits for comes back as a call.

A connection goes through four states, each an object of its own:
:class:`~box_policy.gate.arrival.Arrival` until there is a verdict, then either a
:class:`~box_policy.gate.dial.Dial` and a relayed pair, or a :class:`~box_policy.gate.farewell.Farewell`.
"""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from box_policy.audit import records
from box_policy.audit.sinks import Audit
from box_policy.gate.arrival import Arrival
from box_policy.gate.boxes import GatedBox
from box_policy.gate.claim import HandedOver, limit_record
from box_policy.gate.destination import Destination
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

type Resolve = Callable[[str, Callable[[Resolution], None], Callable[[], bool]], None]
"""Resolve a name and call back once, at once or later, on the lane's own loop. The last argument says
whether that is still wanted, and allowed."""


class Mortal(Protocol):
    """Something that has only so much time."""

    def overdue(self) -> None:
        """Its time is over."""

    def failed(self, error: Exception) -> None:
        """End it; must not raise."""

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

    def expired(self, now: float) -> list[Mortal]:
        expired = []
        for mortal, deadline in self._deadlines.items():
            if deadline > now:
                break
            expired.append(mortal)
        return expired

    def __iter__(self) -> Iterator[Mortal]:
        return iter(list(self._deadlines))


class Lane:
    """The accept, peek, judge, dial and relay loop."""

    def __init__(
        self,
        *,
        resolve: Resolve,
        audit: Audit,
        hand_over: Callable[[HandedOver], None],
        limits: Limits | None = None,
    ) -> None:
        self.resolve = resolve
        self.audit = audit
        self.hand_over = hand_over
        self.limits = limits or Limits()
        self.poller = Poller()
        self.relay = Relay(self.poller)
        self.arriving = Deadlines(self.limits.verdict_timeout)
        self.connecting = Deadlines(self.limits.connect_timeout)
        self.leaving = Deadlines(self.limits.linger)
        self.overhearing = Deadlines(self.limits.verdict_timeout)
        self._listeners: dict[socket.socket, Listener] = {}
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
        listener = Listener(self, sock, box)
        self._listeners[sock] = listener
        self.poller.watch(sock.fileno(), READ, listener)

    def forget(self, sock: socket.socket) -> None:
        """Stop serving a listening socket; to be called before it is closed."""
        if self._listeners.pop(sock, None) is not None:
            self.poller.unregister(sock.fileno())

    def adopt(
        self, sock: socket.socket, received: bytes, box: GatedBox, destination: Destination | None = None
    ) -> None:
        """Take over an accepted connection, with what was read from it. It is judged like any other.

        At one of the box's caps it is reset instead.
        """
        if len(box.live) >= self.limits.connections or box.pending >= self.limits.pending:
            reset(sock)
            self._record_limit(box)
            return
        try:
            sock.setblocking(False)
            arrival = Arrival(self, sock, box, destination)
        except Exception:
            log.exception("a connection failed in the gate and is closed")
            reset(sock)
            return
        try:
            arrival.begin(received)
        except Exception as error:
            log.exception("a connection failed in the gate and is closed")
            arrival.failed(error)

    def sweep(self) -> None:
        """End what has run out of time. To be called a few times a second."""
        now = self.poller.now = time.monotonic()
        for deadlines in (self.arriving, self.connecting, self.leaving, self.overhearing):
            for mortal in deadlines.expired(now):
                try:
                    mortal.overdue()
                except Exception as error:
                    log.exception("a connection failed in the gate and is closed")
                    mortal.failed(error)
        for listener in self._listeners.values():
            listener.resume()
        self.relay.close_emptied()
        if now >= self._next_idle_sweep:
            self._next_idle_sweep = now + min(IDLE_SWEEP, self.limits.idle_timeout / 4)
            self.relay.close_idle(now - self.limits.idle_timeout)

    def _record_limit(self, box: GatedBox) -> None:
        if box.may_record_limit(time.monotonic()):
            self.audit(limit_record(box, records.Protocol.TCP, "connections"))

    def close(self) -> None:
        """Forget every listener and reset every connection. Listening sockets stay their owner's."""
        for sock in list(self._listeners):
            self.forget(sock)
        for deadlines in (self.arriving, self.connecting, self.leaving):
            for mortal in deadlines:
                mortal.cut(Reason.BOX_CLOSED)
        self.relay.close()
        self.poller.close()


class Listener:
    """A listening socket in the poller."""

    def __init__(self, lane: Lane, sock: socket.socket, box: GatedBox) -> None:
        self._lane = lane
        self._sock = sock
        self._box = box
        self._paused = False

    def ready(self, events: int) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    self.failed(error)
                return  # anything else was the one connection's own trouble
            self._lane.adopt(sock, b"", self._box)

    def failed(self, error: Exception) -> None:
        """Out of descriptors or memory: connections wait in the backlog until the next sweep."""
        log.warning("box %s: connections wait: %s", self._box.id, error)
        self._paused = True
        self._lane.poller.watch(self._sock.fileno(), QUIET, self)

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._lane.poller.watch(self._sock.fileno(), READ, self)
