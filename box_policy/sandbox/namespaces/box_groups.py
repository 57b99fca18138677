"""The control groups of a zygote's boxes: removed as soon as a box has ended, and at the latest by the end.

Nothing is looked at or made before a box has a limit that takes one.
"""

import os
import select
import time
from pathlib import Path

from box_policy.sandbox.namespaces import cgroups
from box_policy.sandbox.namespaces.cgroups import Cgroups, Place

# A group can be removed a moment after the last process in it has ended.
_RETRY_MILLISECONDS = 5
_SLOW_RETRY_MILLISECONDS = 500
_RETRIES = 200


def _places() -> list[Place]:
    return cgroups.find_places(
        *(Path(f"/proc/self/{name}").read_text(errors="surrogateescape") for name in ("cgroup", "mountinfo"))
    )


def remove_left_by(zygote: int) -> None:
    """Remove the groups of a zygote that was killed, once its boxes have ended too. This blocks."""
    for _ in range(_RETRIES):
        if cgroups.remove_left_by(zygote, _places()):
            return
        time.sleep(_RETRY_MILLISECONDS / 1000)


class BoxGroups:
    """Which boxes have groups."""

    def __init__(self) -> None:
        self._cgroups: Cgroups | None = None
        self._count = 0
        self._poll = select.poll()
        self._running: dict[int, str] = {}
        """The names of groups, by the pidfd of the box's outer process."""
        self._ended: dict[str, int] = {}
        """Those to be removed, and how often that has been tried."""

    def prepare(self, limits: dict[str, float]) -> tuple[Cgroups | None, str]:
        """For a box with these limits, the groups to join and their name; None if there is no need."""
        if not limits:
            return None, ""
        if self._cgroups is None:
            self._cgroups = Cgroups(_places())
            self._cgroups.remove_stale()
        self._count += 1
        return self._cgroups, cgroups.group_name(self._count)

    def watch(self, name: str, outer: int) -> None:
        """Remove the groups ``name``, if any, once this process and its box have ended."""
        if not name:
            return
        try:
            pidfd = os.pidfd_open(outer)
        except ProcessLookupError:
            self._ended[name] = 0
            return
        self._running[pidfd] = name
        self._poll.register(pidfd, select.POLLIN)

    def leave(self) -> None:
        """Hold nothing of other boxes, in a process forked for one."""
        for pidfd in self._running:
            os.close(pidfd)
        self._running.clear()

    def remove_ended_until_readable(self, server: int) -> None:
        """Return once ``server`` can be read."""
        self._poll.register(server, select.POLLIN)
        while True:
            ready = [fd for fd, _ in self._poll.poll(self._patience())]
            for fd in ready:
                if fd != server:
                    self._end(fd)
            self._remove_ended()
            if server in ready:
                return

    def close(self) -> None:
        """Wait until every box has ended, and leave nothing."""
        if self._cgroups is None:
            return
        try:
            # Ended processes are reaped by the kernel here, so this waits for all of them.
            os.waitpid(-1, 0)
        except ChildProcessError:
            pass
        for fd in tuple(self._running):
            self._end(fd)
        for _ in range(_RETRIES):
            self._remove_ended()
            if not self._ended:
                break
            time.sleep(_RETRY_MILLISECONDS / 1000)
        self._cgroups.close()

    def _end(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        os.close(pidfd)
        self._ended[self._running.pop(pidfd)] = 0

    def _patience(self) -> int | None:
        if not self._ended:
            return None
        # Whatever keeps a group for long must not keep this process busy.
        quick = min(self._ended.values()) < _RETRIES
        return _RETRY_MILLISECONDS if quick else _SLOW_RETRY_MILLISECONDS

    def _remove_ended(self) -> None:
        for name in tuple(self._ended):
            if self._cgroups is None or self._cgroups.remove(name):
                del self._ended[name]
            else:
                self._ended[name] += 1
