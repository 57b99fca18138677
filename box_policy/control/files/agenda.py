"""Which files to look at next, and when. No input, no output."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_TRIES: Final = 50
"""So many extra looks at a file that is being written, after the last event; then the poll takes over."""


@dataclass(frozen=True, slots=True)
class Due:
    """What to look at now. Times are monotonic seconds."""

    names: frozenset[str] | None = None
    """None: every file, and which there are."""
    listing: bool = True
    """Whether there may be others than are known."""
    changed: Mapping[str, float] = field(default_factory=dict)
    """When events last told of a file."""
    all_changed: float | None = None
    """When one last told of what may concern any file."""

    def event(self, name: str) -> float | None:
        """When an event last told of a change to a file; None if none has."""
        changed = self.changed.get(name)
        if changed is None or self.all_changed is None:
            return self.all_changed if changed is None else changed
        return max(changed, self.all_changed)


@dataclass(slots=True)
class Agenda:
    """Names of files that are due. Times are monotonic seconds."""

    everything: float = 0.0
    """When every file is due."""
    _changed: dict[str, float] = field(default_factory=dict)
    _all_changed: float | None = None
    _listing: bool = False
    _again: dict[str, float] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)

    def next(self) -> float:
        """When something is due."""
        return 0.0 if self._changed else min([self.everything, *self._again.values()])

    def add(self, name: str, now: float, *, listing: bool) -> None:
        """An event: look at this file at once, and with patience; and perhaps which files there are."""
        self._changed[name] = now
        self._listing |= listing
        self._tries.pop(name, None)

    def add_everything(self, now: float) -> None:
        """An event that may concern any file."""
        self.everything = 0.0
        self._all_changed = now
        self._tries.clear()

    def again(self, name: str, when: float) -> None:
        """A file can't be judged yet."""
        self._tries[name] = self._tries.get(name, 0) + 1
        if self._tries[name] <= _TRIES:
            self._again[name] = when

    def settled(self, name: str) -> None:
        """A file has been judged."""
        self._tries.pop(name, None)

    def take(self, now: float) -> Due:
        """Strike out what is due, and return it."""
        changed, self._changed = self._changed, {}
        listing, self._listing = self._listing, False
        if now >= self.everything:
            all_changed, self._all_changed = self._all_changed, None
            self._again.clear()
            return Due(None, True, changed, all_changed)
        names = changed.keys() | {name for name, when in self._again.items() if when <= now}
        for name in names:
            self._again.pop(name, None)
        return Due(frozenset(names), listing, changed)
