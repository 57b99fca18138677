"""What a session's client writes for its program, on the way there."""

import asyncio
import contextlib
import os
import termios
from collections import deque
from typing import Final

from box_policy.service.programs.execution import Execution

_MUCH: Final = 256 * 1024
"""Bytes that may wait for the program until the client is held back."""
_END_OF_FILE: Final = b"\x04"
_LOCAL_FLAGS: Final = 3
_CONTROL_CHARACTERS: Final = 6
"""Indices in what ``tcgetattr`` returns."""


class StandardInput:
    """Writes to a program without ever blocking. What waits is bounded as long as :meth:`room` is awaited."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[memoryview] = deque()
        self._size = 0
        self._room = asyncio.Event()
        self._room.set()
        self._closing = False
        self._in_line = False
        """Whether the last that was written to a terminal was not the end of a line."""

    def write(self, data: bytes) -> None:
        """Take bytes for the program. They are dropped if its input was closed, by either side."""
        if data and not self._closing and self._execution.stdin is not None:
            self._in_line = data[-1:] not in (b"\n", b"\r", _END_OF_FILE)
            self._append(data)

    async def room(self) -> None:
        """Return when the program has taken most of it."""
        await self._room.wait()

    def close(self) -> None:
        """The program sees end of file, once it has read the rest. Repeating it does nothing."""
        if self._closing or self._execution.stdin is None:
            return
        self._closing = True
        if self._execution.program.terminal is None:
            if not self._waiting:
                self._end()
        else:
            self._append(self._end_of_file())

    def _append(self, data: bytes) -> None:
        self._waiting.append(memoryview(data))
        self._size += len(data)
        self._write()

    def _write(self) -> None:
        fd = self._execution.stdin
        if fd is None:
            return
        try:
            while self._waiting:
                written = os.write(fd, self._waiting[0])
                self._size -= written
                self._waiting[0] = self._waiting[0][written:]
                if not self._waiting[0]:
                    self._waiting.popleft()
        except BlockingIOError:
            self._loop.add_writer(fd, self._write)
        except OSError:
            self._end()  # the program reads no more
        else:
            self._loop.remove_writer(fd)
            if self._closing and self._execution.program.terminal is None:
                self._end()
        if self._size < _MUCH:
            self._room.set()
        else:
            self._room.clear()

    def _end(self) -> None:
        self._waiting.clear()
        self._size = 0
        self._room.set()
        fd, self._execution.stdin = self._execution.stdin, None
        if fd is not None:
            self._loop.remove_writer(fd)
            os.close(fd)

    def _end_of_file(self) -> bytes:
        """What stands for end of file on this terminal: termios(3), VEOF."""
        character, is_canonical = _END_OF_FILE, True
        with contextlib.suppress(OSError, termios.error):
            attributes = termios.tcgetattr(self._execution.stdin or -1)
            character = attributes[_CONTROL_CHARACTERS][termios.VEOF]
            is_canonical = bool(attributes[_LOCAL_FLAGS] & termios.ICANON)
        # In the middle of a line the first one only ends that.
        return character * 2 if self._in_line and is_canonical else character
