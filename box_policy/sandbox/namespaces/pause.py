"""Stopping all processes of a box and letting them go on, from its pid 1.

Not by the cgroup freezer: what cgroup v1 has frozen can't be killed, and an ordinary user has none.
"""

import os
import signal
import time
from collections.abc import Collection, Iterable

from box_policy.sandbox.namespaces import processes
from box_policy.sandbox.namespaces.processes import Process

_PATIENCE = 1.0
"""Seconds to wait for what was stopped to be at rest. Longer is what takes long in the kernel."""
_STEP = 0.0002
_LEVELS = 32
"""Generations of processes that are stopped one after the other."""
_HOLD_INTERVAL = 0.1
"""Seconds until everything is stopped again."""
_ALARM_INTERVAL = 0.005
"""The same if something has happened to a process: at once, but not so often that it takes all the time."""


class Pause:
    """Whether the box is paused."""

    def __init__(self) -> None:
        self.is_on = False
        self._stopped_before: set[tuple[int, int]] = set()
        self._held_at = 0.0
        self._is_alarmed = False

    def begin(self) -> None:
        """Stop all, and return when all have stopped."""
        if self.is_on:
            return
        everyone = _others()
        self._stopped_before = {
            (process.pid, process.started) for process in everyone if process.state == processes.STOPPED
        }
        deadline = time.monotonic() + _PATIENCE
        # Parents first: a shell that still waits for its job would take it for stopped by the user.
        for parents in _parents_by_depth(everyone)[:_LEVELS]:
            for process in parents:
                _kill(process.pid, signal.SIGSTOP)
            _wait_until_at_rest(parents, deadline)
        # All that are left, in one call: none can fork its way out of it. The caller, pid 1, is left out.
        self._stop_all()
        self.is_on = True
        _wait_until_at_rest(_others(), deadline)

    def alarm(self) -> None:
        """Look to it soon: a process has ended, or was continued."""
        self._is_alarmed = True

    def hold(self) -> int | None:
        """Stop again what goes on, if it is time; return the milliseconds until it is. None: no need.

        Not only a program continues what is stopped: the kernel does, when the process that a group of
        others comes from has ended, and so does a timer of the program's.
        """
        if not self.is_on:
            return None
        now = time.monotonic()
        if now >= self._held_at + (_ALARM_INTERVAL if self._is_alarmed else _HOLD_INTERVAL):
            self._stop_all()
        due = self._held_at + (_ALARM_INTERVAL if self._is_alarmed else _HOLD_INTERVAL)
        return max(1, int(1000 * (due - now)) + 1)

    def _stop_all(self) -> None:
        # Cheaper than a look at who needs it, and of no effect on those that are stopped.
        _kill(-1, signal.SIGSTOP)
        self._held_at = time.monotonic()
        self._is_alarmed = False

    def end(self) -> None:
        """Let them go on, but for those that something else had stopped."""
        if not self.is_on:
            return
        self.is_on = False
        # Children first: a shell that runs again should find its jobs running, not stopped.
        stopped = sorted(_others(), key=lambda process: (process.started, process.pid), reverse=True)
        for process in stopped:
            if (process.pid, process.started) not in self._stopped_before:
                _kill(process.pid, signal.SIGCONT)


def _others() -> list[Process]:
    return [process for process in processes.everyone() if process.pid != os.getpid()]


def _parents_by_depth(everyone: Collection[Process]) -> list[list[Process]]:
    """Those that have children; those that come from none of them first."""
    children: dict[int, list[Process]] = {}
    for process in everyone:
        children.setdefault(process.parent, []).append(process)
    known = {process.pid for process in everyone}
    level = [process for process in everyone if process.parent not in known]
    levels = []
    while parents := [process for process in level if process.pid in children]:
        levels.append(parents)
        level = [child for process in parents for child in children[process.pid]]
    return levels


def _wait_until_at_rest(stopped: Iterable[Process], deadline: float) -> None:
    for process in stopped:
        while not all(thread.is_at_rest for thread in processes.threads(process.pid)):
            if time.monotonic() > deadline:
                return
            time.sleep(_STEP)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
