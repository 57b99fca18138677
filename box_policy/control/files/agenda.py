"""Which files to look at next, and when. No input, no output."""

from dataclasses import dataclass, field
from typing import Final

_TRIES: Final = 50
"""So many extra looks at a file that is being written, after the last event; then the poll takes over."""


@dataclass(slots=True)
class Agenda:
    """Names of files that are due. Times are monotonic seconds."""

    everything: float = 0.0
    """When every file is due."""
    _names: set[str] = field(default_factory=set)
    _again: dict[str, float] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)

    def next(self) -> float:
        """When something is due."""
        return 0.0 if self._names else min([self.everything, *self._again.values()])

    def add(self, name: str) -> None:
        """An event: look at this file at once, and with patience."""
        self._names.add(name)
        self._tries.pop(name, None)

    def add_everything(self) -> None:
        """An event that may concern any file."""
        self.everything = 0.0
        self._tries.clear()

    def again(self, name: str, when: float) -> None:
        """A file can't be judged yet."""
        self._tries[name] = self._tries.get(name, 0) + 1
        if self._tries[name] <= _TRIES:
            self._again[name] = when

    def settled(self, name: str) -> None:
        """A file has been judged."""
        self._tries.pop(name, None)

    def take(self, now: float) -> set[str] | None:
        """Strike out what is due, and return the names; None if every file is."""
        if now >= self.everything:
            self._names.clear()
            self._again.clear()
            return None
        names = self._names | {name for name, when in self._again.items() if when <= now}
        self._names = set()
        for name in names:
            self._again.pop(name, None)
        return names
