"""A refused connection that is told why before it is closed."""

import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from box_policy.gate.boxes import GatedBox
from box_policy.gate.failures import every
from box_policy.gate.poller import READ
from box_policy.gate.reset import reset_on_close
from box_policy.policy.reasons import Reason

if TYPE_CHECKING:
    from box_policy.gate.lane import Lane

_MAX_DISCARDED: Final = 1024 * 1024
_READ_SIZE: Final = 64 * 1024


class Farewell:
    """Sends the last words and a FIN, then discards what the client still sends, for a short while.

    Closing at once would not do: with bytes unread the kernel sends RST, which can overtake the last
    words, and the client would see a broken connection instead of a reason.
    """

    __slots__ = ("_box", "_discarded", "_done", "_lane", "_last_words", "_sock")

    def __init__(self, lane: "Lane", sock: socket.socket, box: GatedBox, last_words: bytes) -> None:
        self._lane = lane
        self._sock = sock
        self._box = box
        self._last_words = last_words
        self._discarded = 0
        self._done = False

    def begin(self) -> None:
        """To be attempted: nobody else owns the socket any more."""
        self._box.live.add(self)
        self._lane.leaving.start(self, self._lane.poller.now)
        try:
            # A few bytes into an empty send buffer: taken whole, or the connection is broken.
            self._sock.send(self._last_words)
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.overdue()
        else:
            self._box.poller.watch(self._sock.fileno(), READ, self)

    def ready(self, events: int) -> None:
        try:
            count = len(self._sock.recv(_READ_SIZE))
        except BlockingIOError:
            return
        except OSError:
            count = 0
        self._discarded += count
        if count == 0 or self._discarded > _MAX_DISCARDED:
            self.overdue()

    def overdue(self) -> None:
        if self._done:
            return
        self._done = True
        self._box.live.discard(self)
        every(
            partial(self._box.poller.unregister, self._sock.fileno()),
            partial(self._lane.leaving.stop, self),
            self._sock.close,
        )

    def failed(self, error: Exception) -> None:
        self.overdue()

    def cut(self, reason: Reason) -> None:
        if not self._done:
            reset_on_close(self._sock)
            self.overdue()

    def judge_again(self) -> bool:
        return False  # it is refused already, whatever is allowed now

    def buffered(self) -> int:
        return 0
