"""The last records, kept in memory for whoever follows along."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, Self

from box_policy.audit.records import Entry

CAPACITY: Final = 10_000
"""Records that are kept; ten to twenty megabytes at the very most."""

EVENT_ID: Final = r"[0-9a-f]{12}-[0-9]{1,18}"
"""A record's id: the process's life, and the record's number in it."""

_BATCH: Final = 64
"""Records that a reader takes at once: what they cost to render must not hold up the loop."""
_SCANNED: Final = 1_000
"""Records that a search looks at before it lets the loop go on, in less than a millisecond."""


class InvalidEventId(ValueError):
    """The text is no record's id."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive records."""

    missed: int | None
    """Records before these that this reader can't be shown any more; None if nobody knows how many."""
    first: int
    """The number of the first record."""
    entries: tuple[Entry, ...]


class RecordStream:
    """A sink that keeps the last records, for any number of readers, each at its own pace.

    There is one ring and no queue a reader: one that falls behind costs nothing, and is told how many
    records it has missed. Nothing is rendered here. To be used from the event loop alone.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.epoch = secrets.token_hex(6)
        """Tells this life of the process from others: numbers begin anew with each."""
        self.closed = False
        self.count = 0
        """Records so far, which is the number of the latest."""
        self._ring: list[Entry | None] = [None] * capacity
        self._arrived = asyncio.Event()

    def __call__(self, record: Entry) -> None:
        self.count += 1
        self._ring[self.count % len(self._ring)] = record
        self._wake()

    @property
    def oldest(self) -> int:
        """The number of the oldest record that is kept, or that of the first to come."""
        return max(1, self.count - len(self._ring) + 1)

    def id_of(self, number: int) -> str:
        """The id of a record, unique over all lives of the process."""
        return f"{self.epoch}-{number}"

    def close(self) -> None:
        """End every reader, after what it still has to take."""
        self.closed = True
        self._wake()

    def follow(self) -> "Reader":
        """A reader of what comes from now on."""
        return Reader(self, self.count + 1)

    def resume(self, event_id: str) -> "Reader":
        """A reader of what came after the record with that id.

        Of an id from another life, or one that was never given, nobody knows what came after it: the
        reader is told so, and shown all that is kept.

        Raises:
            InvalidEventId: it is no id.
        """
        if not re.fullmatch(EVENT_ID, event_id):
            raise InvalidEventId("not the id of a record")
        epoch, _, digits = event_id.partition("-")
        number = int(digits)
        if epoch != self.epoch or number > self.count:
            return Reader(self, self.oldest, missed=None)
        return Reader(self, number + 1)

    async def backlog(self, most: int, wanted: Callable[[Entry], bool]) -> "Reader":
        """A reader that begins with the last ``most`` of the kept records that are wanted.

        What comes between them, and after, it is shown as well, wanted or not.
        """
        position, found = self.count + 1, 0
        while found < most and position > self.oldest:
            for number in range(position - 1, max(self.oldest, position - _SCANNED) - 1, -1):
                position = number
                found += wanted(self.entry(number))
                if found == most:
                    break
            await asyncio.sleep(0)
        return Reader(self, max(position, self.oldest))

    def entry(self, number: int) -> Entry:
        """A record that is kept. Raises LookupError."""
        entry = self._ring[number % len(self._ring)] if self.oldest <= number <= self.count else None
        if entry is None:
            raise LookupError(f"record {number} isn't kept")
        return entry

    async def arrival(self) -> None:
        """Wait for the next record, or for the end."""
        if not self.closed:
            await self._arrived.wait()

    def _wake(self) -> None:
        # Everybody who waits now; who comes later waits for the next.
        self._arrived.set()
        self._arrived.clear()


class Reader:
    """One reader's place in the stream."""

    def __init__(self, stream: RecordStream, position: int, *, missed: int | None = 0) -> None:
        self._stream = stream
        self._position = position
        self._missed = missed
        self._last: int | None = None

    @property
    def position(self) -> int:
        """The number of the next record that it takes."""
        return self._position

    def until_now(self) -> Self:
        """End this reader after the latest record there is now."""
        self._last = self._stream.count
        return self

    def take(self) -> Batch | None:
        """What has come since; None if that is nothing. Never more than a few milliseconds' work."""
        stream = self._stream
        end = (stream.count if self._last is None else self._last) + 1
        first = min(max(self._position, stream.oldest), max(self._position, end))
        missed = None if self._missed is None else first - self._position
        last = min(first + _BATCH, end)
        if missed == 0 and last <= first:
            return None
        entries = tuple(stream.entry(number) for number in range(first, last))
        self._position = first + len(entries)
        self._missed = 0
        return Batch(missed, first, entries)

    async def wait(self) -> bool:
        """Wait until there is something to take. False at the end: there never will be. Waiting may be
        given up at any moment."""
        while self._position > self._stream.count:
            if self.ended:
                return False
            await self._stream.arrival()
        return not self.ended

    @property
    def ended(self) -> bool:
        """Nothing is left to take, and nothing will come."""
        if self._last is not None and self._position > self._last:
            return self._missed == 0
        return self._stream.closed and self._position > self._stream.count and self._missed == 0

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        while (batch := self.take()) is None:
            if not await self.wait():
                raise StopAsyncIteration
        return batch
