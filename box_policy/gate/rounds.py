"""Has boxes take turns at work that takes long, a piece in each round of the event loop."""

import asyncio
from collections import OrderedDict, deque


class Rounds:
    """One piece a round, of one box after the other. Whatever else the loop serves waits for that one piece,
    not for those of all connections that happen to be ready."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._taken = False
        """There was a piece in this round, or will be one in the next."""

    async def turn(self, box: str) -> None:
        """Wait until a piece of the box's work may be done."""
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._next)
            return
        turn = loop.create_future()
        self._waiting.setdefault(box, deque()).append(turn)
        await turn

    def _next(self) -> None:
        self._taken = False
        while self._waiting and not self._taken:
            box, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[box] = turns  # behind the others
            if not turn.done():  # it may have been cancelled
                turn.set_result(None)
                self._taken = True
                asyncio.get_running_loop().call_soon(self._next)
