"""An epoll set whose descriptors each belong to an object that is told when they are ready.

The lane has a loop of its own, so that it can live inside another event loop (its descriptor is one
reader there) or be the whole of a process.
"""

import logging
import select
import time
from typing import Protocol

log = logging.getLogger(__name__)

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANG_UP = select.EPOLLHUP
ERROR = select.EPOLLERR
QUIET = select.EPOLLET
"""Neither reading nor writing: only a hang-up or an error is told, and told once. (An empty set would
be told of a hang-up again and again.)"""

BATCH = 16
"""Events of one turn, some milliseconds' work at most: the loop around has others to serve."""


class Target(Protocol):
    """Owns a descriptor."""

    def ready(self, events: int) -> None:
        """The descriptor is ready. May be told in vain, as with any poller."""

    def failed(self, error: Exception) -> None:
        """``ready`` raised. Must end what the descriptor belongs to, and must not raise."""


class Poller:
    """Dispatches readiness. What a target raises ends that target and nothing else."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._targets: dict[int, Target] = {}
        self._events: dict[int, int] = {}
        self._gone: set[int] = set()
        self.now = time.monotonic()
        """The time of the current batch, so that targets need not ask for it each."""

    def fileno(self) -> int:
        return self._epoll.fileno()

    def watch(self, fd: int, events: int, target: Target) -> None:
        """Watch a descriptor for these events on behalf of a target, in place of what was watched before."""
        before = self._events.get(fd)
        if before is None:
            self._epoll.register(fd, events)
        elif before != events:
            self._epoll.modify(fd, events)
        self._events[fd] = events
        self._targets[fd] = target

    def unregister(self, fd: int) -> None:
        """Forget a descriptor, watched or not. To be called before it is closed."""
        if self._events.pop(fd, None) is not None:
            del self._targets[fd]
            self._epoll.unregister(fd)
            # The number may be given out again within this batch; an event of the old one must not
            # reach the new owner.
            self._gone.add(fd)

    def run_ready(self) -> None:
        """Dispatch what is ready now; never waits."""
        self.now = time.monotonic()
        self._gone.clear()
        for fd, events in self._epoll.poll(0, BATCH):
            target = self._targets.get(fd)
            if target is None or fd in self._gone:
                continue
            try:
                target.ready(events)
            except Exception as error:
                log.exception("a connection failed in the gate and is closed")
                self._fail(target, error)

    def _fail(self, target: Target, error: Exception) -> None:
        """Whatever goes wrong there, the others of the batch have their turn."""
        try:
            target.failed(error)
        except Exception:
            log.exception("a connection that failed in the gate could not be closed")

    def close(self) -> None:
        self._epoll.close()
        self._targets.clear()
        self._events.clear()
