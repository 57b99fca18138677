"""A token bucket: so many at once, so many a second in the long run."""


class Bucket:
    """Filled at an even rate, up to a burst's worth, which it has at first."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._updated = float("-inf")

    def take(self, now: float) -> bool:
        """Take a token, at a time of the monotonic clock. False if there is none."""
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
