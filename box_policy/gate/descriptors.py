"""Shares out the descriptors of this process, so that no box takes what another needs.

The kernel gives out the lowest number that is free. So the number of a new descriptor tells how many are in
use, whatever for, and nobody has to keep count.
"""

import resource
from typing import Final, Self

_SHARED: Final = 3 / 4
"""The part that is there for whoever comes first. The rest is shared out evenly among the boxes."""
_RESERVED: Final = 256
"""What is kept for the gate itself: questions to name servers, the control endpoint, the log. Of few
descriptors it is an eighth."""
_A_CONNECTION: Final = 2
"""Its two sockets. Pipes are only for connections that find plenty of descriptors."""
_FOR_QUESTIONS: Final = 1 / 8
"""The part that may be sockets to name servers."""


class Descriptors:
    """Judges new descriptors by their number."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.boxes = 1
        """How many there are to share."""

    @classmethod
    def of_process(cls) -> Self:
        """This process's. Raises its soft limit to the hard one."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return cls(hard)

    def plenty(self, fd: int) -> bool:
        """Are there enough left for what could also be done without?"""
        return fd < self.limit * _SHARED

    def enough(self, fd: int) -> bool:
        """Are there more left than the gate itself needs?"""
        return fd < self.limit - self._reserved

    def admit(self, fd: int, held: int) -> bool:
        """May a box that has so many connections have another, which got this descriptor?"""
        if self.plenty(fd):
            return True
        shared_out = self.limit * (1 - _SHARED) - self._reserved
        return self.enough(fd) and held < max(1, shared_out / _A_CONNECTION / max(1, self.boxes))

    def questions(self) -> int:
        """How many questions to name servers each box may have under way: at least one."""
        return max(1, int(self.limit * _FOR_QUESTIONS / max(1, self.boxes)))

    @property
    def _reserved(self) -> int:
        return min(_RESERVED, self.limit // 8)
