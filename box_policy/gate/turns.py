"""Shares out turns among askers, each of whom has as many as any other."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

MAX_WAITING: Final = 2048
"""That wait for a turn of one asker's."""


class Waiting:
    """Something that waits for a turn, on behalf of one asker or several."""

    def __init__(self) -> None:
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it has one; or when nobody waits for it any more."""
        self.asker: Hashable = None
        """Whose turn it has."""
        self.has_turn = False

    def give_up(self) -> None:
        """It needs none any more."""
        if not self.turn.done():
            self.turn.set_result(None)


class Turns:
    """Whoever has no turn left waits for one of its own: nobody else's are taken for it, or awaited.

    What several ask for waits for all of them, and takes the first turn that one of them has.
    """

    def __init__(self, share: Callable[[], int]) -> None:
        """``share`` says how many turns each asker has, at this moment."""
        self._share = share
        self._taken: dict[Hashable, int] = {}
        self._queues: dict[Hashable, deque[Waiting]] = {}

    def want(self, asker: Hashable, waiting: Waiting) -> bool:
        """Have it given a turn of the asker's, at once or later. False if too many wait for that already."""
        if waiting.turn.done():
            return True
        if self._taken.get(asker, 0) < self._share():
            self._give(asker, waiting)
            return True
        queue = self._queues.setdefault(asker, deque())
        if len(queue) >= MAX_WAITING:
            return False
        queue.append(waiting)
        return True

    def give_back(self, waiting: Waiting) -> None:
        """It is over. To be called in any case, whether it had a turn or not."""
        if not waiting.has_turn:
            return
        asker = waiting.asker
        self._taken[asker] -= 1
        queue = self._queues.get(asker)
        while queue and self._taken[asker] < self._share():
            following = queue.popleft()
            if not following.turn.done():
                self._give(asker, following)
        if not queue:
            self._queues.pop(asker, None)
        if not self._taken[asker]:
            del self._taken[asker]

    def _give(self, asker: Hashable, waiting: Waiting) -> None:
        self._taken[asker] = self._taken.get(asker, 0) + 1
        waiting.asker = asker
        waiting.has_turn = True
        waiting.turn.set_result(None)
