"""Readers for mitmproxy's connection handlers, in place of the bare ``asyncio.StreamReader``."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

_READ_SIZE: Final = 65535


type Turn = Callable[[], Awaitable[None]]
"""Waits until what was read may be worked on, which takes long."""


class CountingReader:
    """A reader that counts."""

    def __init__(self, reader: asyncio.StreamReader, turn: Turn) -> None:
        self._reader = reader
        self._turn = turn
        self.count = 0

    async def read(self, size: int = _READ_SIZE) -> bytes:
        data = await self._reader.read(size)
        self.count += len(data)
        await self._turn()
        return data


class GatedReader(CountingReader):
    """The client's reader, which holds back what it sends while a request is being judged or dialled for.

    The HTTP layer would otherwise collect it without bound. The reader beneath has a bounded buffer, so
    the client itself is held back in the end.
    """

    def __init__(self, reader: asyncio.StreamReader, received: bytes, turn: Turn) -> None:
        super().__init__(reader, turn)
        self._received = received
        self.open = asyncio.Event()
        self.open.set()
        self._wanted = asyncio.Event()
        self._wanted.set()

    def hold(self, on: bool) -> None:
        """Hold everything back (True), whether the gate is open or not, until told otherwise (False)."""
        if on:
            self._wanted.clear()
        else:
            self._wanted.set()

    async def read(self, size: int = _READ_SIZE) -> bytes:
        while not (self.open.is_set() and self._wanted.is_set()):
            await self.open.wait()
            await self._wanted.wait()
        if self._received:
            data, self._received = self._received[:size], self._received[size:]
            self.count += len(data)
            return data
        return await super().read(size)
