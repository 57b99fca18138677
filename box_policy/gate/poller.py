"""An epoll set whose descriptors each belong to an object that is told when they are ready.

The lane has a loop of its own, so that it can live inside another event loop (its descriptor is one
reader there) or be the whole of a process. Within it every box has one: a poller may be a poller's target. A
turn is then shared out evenly among the boxes for which there is something to do, however much that is.
"""

import select
import time
from typing import Protocol

from box_policy.gate.failures import Fallible, attempt

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
HANG_UP = select.EPOLLHUP
ERROR = select.EPOLLERR
QUIET = select.EPOLLET
"""Neither reading nor writing: only a hang-up or an error is told, and told once. (An empty set would
be told of a hang-up again and again.)"""

BATCH = 16
"""Events of one turn, some milliseconds' work at most: the loop around has others to serve."""


class Target(Fallible, Protocol):
    """Owns a descriptor."""

    def ready(self, events: int) -> None:
        """The descriptor is ready. May be told in vain, as with any poller."""


class Poller:
    """Dispatches readiness. What a target raises ends that target and nothing else."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._targets: dict[int, Target | Poller] = {}
        self._events: dict[int, int] = {}
        self._gone: set[int] = set()
        self.now = time.monotonic()
        """The time of the current batch, so that targets need not ask for it each."""

    def fileno(self) -> int:
        return self._epoll.fileno()

    def watch(self, fd: int, events: int, target: "Target | Poller") -> None:
        """Watch a descriptor for these events on behalf of a target, in place of what was watched before.

        A poller that is a target gets its part of each turn.
        """
        before = self._events.get(fd)
        if before is None:
            self._epoll.register(fd, events)
        elif before != events or self._targets[fd] is not target:
            try:
                self._epoll.modify(fd, events)
            except FileNotFoundError:  # closed without a word, and the number has been given out again
                self._epoll.register(fd, events)
        self._events[fd] = events
        self._targets[fd] = target

    def unregister(self, fd: int) -> None:
        """Forget a descriptor, watched or not. To be called before it is closed."""
        if self._events.pop(fd, None) is not None:
            del self._targets[fd]
            # The number may be given out again within this batch; an event of the old one must not
            # reach the new owner.
            self._gone.add(fd)
            self._epoll.unregister(fd)

    def run_ready(self) -> None:
        """Dispatch what is ready now; never waits."""
        self.now = time.monotonic()
        self._run(BATCH)

    @property
    def watched(self) -> int:
        """How many descriptors are watched, those of inner pollers left out."""
        inner = [target for target in self._targets.values() if isinstance(target, Poller)]
        return len(self._targets) - len(inner) + sum(poller.watched for poller in inner)

    def _run(self, most: int) -> None:
        self._gone.clear()
        found = self._epoll.poll(0, most)
        for fd, events in found:
            target = self._targets.get(fd)
            if target is None or fd in self._gone:
                continue
            if isinstance(target, Poller):
                target._run(max(1, most // len(found)))
            else:
                attempt(target, target.ready, events)

    def close(self) -> None:
        self._epoll.close()
        self._targets.clear()
        self._events.clear()
