"""Readers for mitmproxy's connection handlers, in place of the bare ``asyncio.StreamReader``."""

import asyncio
from typing import Final

_READ_SIZE: Final = 65535


class CountingReader:
    """A reader that counts."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self.count = 0

    async def read(self, size: int = _READ_SIZE) -> bytes:
        data = await self._reader.read(size)
        self.count += len(data)
        return data


class GatedReader(CountingReader):
    """The client's reader, which holds back what it sends while a request is being judged or dialled for.

    The HTTP layer would otherwise collect it without bound. The reader beneath has a bounded buffer, so
    the client itself is held back in the end.
    """

    def __init__(self, reader: asyncio.StreamReader, received: bytes) -> None:
        super().__init__(reader)
        self._received = received
        self.open = asyncio.Event()
        self.open.set()

    async def read(self, size: int = _READ_SIZE) -> bytes:
        await self.open.wait()
        if self._received:
            data, self._received = self._received[:size], self._received[size:]
            self.count += len(data)
            return data
        return await super().read(size)
