"""How often something may be said."""

import time
from collections.abc import Callable


class Pace:
    """Lets through a burst, and then so many a second; counts what it held back."""

    def __init__(self, burst: int, per_second: float, *, now: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._per_second = per_second
        self._now = now
        self._left = float(burst)
        self._at = now()
        self._held = 0

    def allows(self) -> bool:
        """May it be said now?"""
        now = self._now()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            self._held += 1
            return False
        self._left -= 1
        return True

    def take_held(self) -> int:
        """How many were held back since this was asked last."""
        held, self._held = self._held, 0
        return held
