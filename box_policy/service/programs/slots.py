"""How many programs may run at one time."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

MAX_A_BOX: Final = 64
MAX_IN_ALL: Final = 512


class TooManyProgramsError(Exception):
    """As many programs run as may. The message says where."""


class Slots:
    """Places for programs; each holds three descriptors of the service's at most, and a task or two."""

    def __init__(self, *, a_box: int = MAX_A_BOX, in_all: int = MAX_IN_ALL) -> None:
        self._a_box = a_box
        self._in_all = in_all
        self._taken: Counter[str] = Counter()

    def running(self, box_id: str) -> int:
        """How many programs run in a box."""
        return self._taken[box_id]

    @contextmanager
    def place(self, box_id: str) -> Iterator[None]:
        """Hold a place while a program of a box runs.

        Raises:
            TooManyProgramsError: there is none. It says so at once: nobody queues.
        """
        if self._taken[box_id] >= self._a_box:
            raise TooManyProgramsError(
                f"{self._a_box} programs run in this box, and may be no more: wait for one, or use another"
            )
        if self._taken.total() >= self._in_all:
            raise TooManyProgramsError(
                f"{self._in_all} programs run in all boxes, and may be no more: wait for some"
            )
        self._taken[box_id] += 1
        try:
            yield
        finally:
            self._taken[box_id] -= 1
            if not self._taken[box_id]:
                del self._taken[box_id]
