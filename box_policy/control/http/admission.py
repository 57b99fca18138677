"""How many connections there may be, and what those may cost that nobody has vouched for yet."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from box_policy.control.http.guard import held_back
from box_policy.control.http.pace import Pace

log = logging.getLogger(__name__)

_TURN: Final = 0.004
"""Seconds of one turn of the loop that all strangers together may have."""


class Stranger(Protocol):
    """A connection that has not authenticated."""

    def displace(self) -> None:
        """End it at once: another needs its place."""


class Admission:
    """The connections of one endpoint. To be used from the event loop alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._strangers: dict[Stranger, None] = {}  # the oldest first
        self._known: set[Stranger] = set()
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False
        self._pace = Pace(burst=5, per_second=0.1)
        self.displaced = 0
        """Connections that were ended to make room for others."""

    def enter(self, connection: Stranger) -> bool:
        """Count a connection; False if there is no place for it.

        Where there is none, the oldest stranger makes room: whoever has authenticated keeps its place, and
        whoever has the token needs a moment only to show it.
        """
        if len(self._strangers) + len(self._known) >= self._limit:
            oldest = next(iter(self._strangers), None)
            self.displaced += 1
            if self._pace.allows():
                log.warning(
                    "the control endpoint has %d connections, as many as there may be: %s%s",
                    self._limit,
                    "a new one is refused" if oldest is None else "the oldest without the token is ended",
                    held_back(self._pace),
                )
            if oldest is None:
                return False
            del self._strangers[oldest]
            oldest.displace()
        self._strangers[connection] = None
        return True

    def vouch(self, connection: Stranger) -> None:
        """The connection has authenticated."""
        if connection in self._strangers:
            del self._strangers[connection]
            self._known.add(connection)

    def leave(self, connection: Stranger) -> None:
        """The connection is gone."""
        self._strangers.pop(connection, None)
        self._known.discard(connection)

    def in_turn(self, work: Callable[[], None]) -> None:
        """Do a stranger's work soon; however many there are, the others on the loop have their turns too."""
        self._waiting.append(work)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._work)

    def _work(self) -> None:
        self._scheduled = False
        end = time.monotonic() + _TURN
        try:
            while self._waiting:
                self._waiting.popleft()()
                if time.monotonic() >= end:
                    break
        finally:
            self._schedule()
