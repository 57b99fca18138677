"""How much of a thing all requests together may hold."""

from collections.abc import Iterator
from contextlib import contextmanager


class Share:
    """What one request holds of a budget."""

    def __init__(self, budget: "Budget") -> None:
        self._budget = budget
        self._held = 0

    def take(self, wanted: int) -> int:
        """Hold as much more as there is, at most ``wanted``. Returns how much."""
        granted = min(wanted, self._budget.left)
        self._budget.left -= granted
        self._held += granted
        return granted

    def give_back(self) -> None:
        """Hold nothing more."""
        self._budget.left += self._held
        self._held = 0


class Budget:
    """So many bytes. To be used from the event loop alone."""

    def __init__(self, size: int) -> None:
        self.left = size
        """What nobody holds."""

    @contextmanager
    def share(self) -> Iterator[Share]:
        """A share of it, empty at first, and given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            share.give_back()
