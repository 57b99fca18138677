"""Ties the caller's standard streams to a program in a box.

The box gets nothing of the caller's but pipes. A terminal in its hands could push input into the
caller's shell; a socket belongs to the caller's network, and can be connected to somewhere else; a file
can be opened again, for writing, by whoever owns it. So a terminal is replaced by a pseudo-terminal of
the box's own, everything else that isn't a pipe by a pipe, and bytes are carried between the two.
"""

import contextlib
import fcntl
import os
import select
import stat
import struct
import termios
import threading
import tty
from collections.abc import Iterator
from typing import Final

_CHUNK: Final = 65536
_TERMINAL_OUTPUT: Final = 1
"""Index of the output flags in what ``tcgetattr`` returns."""


class Streams:
    """The caller's three standard streams, and what the program gets in their places.

    ``program`` holds a descriptor for each, or None for the program's own terminal.
    """

    def __init__(self) -> None:
        self.is_terminal = [_is_terminal(fd) for fd in (0, 1, 2)]
        self.program: list[int | None] = []
        self._carried: list[tuple[int, int]] = []  # from, to
        self._far_ends: list[int] = []
        for fd in (0, 1, 2):
            if self.is_terminal[fd]:
                self.program.append(None)
            elif stat.S_ISFIFO(os.fstat(fd).st_mode):
                self.program.append(fd)
            else:
                reader, writer = os.pipe()
                self._carried.append((fd, writer) if fd == 0 else (reader, fd))
                self._far_ends.append(reader if fd == 0 else writer)
                self.program.append(self._far_ends[-1])

    def window_size(self) -> tuple[int, int] | None:
        """Rows and columns of the caller's terminal; None if no stream is one."""
        for fd, is_terminal in enumerate(self.is_terminal):
            if is_terminal:
                with contextlib.suppress(OSError):
                    size = os.get_terminal_size(fd)
                    return size.lines, size.columns
        return (24, 80) if any(self.is_terminal) else None

    def carry(self, master: int | None) -> "Carriers":
        """Start to carry bytes. ``master`` is that of the program's terminal, if it has one."""
        for fd in self._far_ends:
            os.close(fd)  # the program has its own
        carried = list(self._carried)
        if master is not None:
            shown_on = next((fd for fd in (1, 2, 0) if self.is_terminal[fd]), 0)
            carried.append((master, shown_on))
            if self.is_terminal[0]:
                carried.append((0, os.dup(master)))
        return Carriers(carried)

    @contextlib.contextmanager
    def raw_mode(self) -> Iterator[None]:
        """The caller's terminal passes every key on, Ctrl-C included, until the end of the block."""
        if not self.is_terminal[0]:
            yield
            return
        before = termios.tcgetattr(0)
        tty.setraw(0)
        if not self.is_terminal[1]:
            # Others still write to this terminal, and rely on it to return the carriage.
            now = termios.tcgetattr(0)
            now[_TERMINAL_OUTPUT] |= termios.OPOST | termios.ONLCR
            termios.tcsetattr(0, termios.TCSANOW, now)
        try:
            yield
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)


def set_window_size(master: int, size: tuple[int, int]) -> None:
    """Tell a pseudo-terminal how large it is now."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


class Carriers:
    """Threads that each carry bytes one way. Threads, as a terminal that is held (Ctrl-S) blocks whoever
    writes to it, and that must not be the gate."""

    def __init__(self, carried: list[tuple[int, int]]) -> None:
        self._wake_read, self._wake_write = os.pipe()
        self._input: list[threading.Thread] = []
        self._output: list[threading.Thread] = []
        for source, sink in carried:
            if source == 0:
                thread = threading.Thread(target=self._carry_input, args=(sink,), daemon=True)
                self._input.append(thread)
            else:
                thread = threading.Thread(target=_carry_output, args=(source, sink), daemon=True)
                self._output.append(thread)
            thread.start()

    def finish(self) -> None:
        """Once the box has ended: return when all that was written in it has reached the caller."""
        for thread in self._output:
            thread.join()
        os.close(self._wake_write)
        for thread in self._input:
            thread.join()
        os.close(self._wake_read)

    def _carry_input(self, sink: int) -> None:
        """Until the caller's input ends, or the program has: what is typed then is not for it."""
        try:
            while True:
                ready, _, _ = select.select([0, self._wake_read], [], [])
                if self._wake_read in ready:
                    return
                data = _read(0)
                if not data:
                    return
                _write(sink, data, self._wake_read)
        except OSError:
            pass  # the program has closed its end
        finally:
            os.close(sink)


def _carry_output(source: int, sink: int) -> None:
    try:
        while data := _read(source):
            _write(sink, data)
    except OSError:
        pass  # EIO: the last process of the terminal has gone. Or the caller reads no more
    finally:
        os.close(source)  # so that the program hears of it, too


def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, _CHUNK)
        except BlockingIOError:  # the caller has made it so, for whoever it shares the stream with
            select.select([fd], [], [])


def _write(fd: int, data: bytes, wake: int | None = None) -> None:
    """Write all of it. With ``wake``, give up once that is readable."""
    view = memoryview(data)
    while view:
        if wake is not None and wake in select.select([wake], [fd], [])[0]:
            return
        try:
            view = view[os.write(fd, view[:4096] if wake is not None else view) :]
        except BlockingIOError:
            select.select([], [fd], [])


def _is_terminal(fd: int) -> bool:
    return stat.S_ISCHR(os.fstat(fd).st_mode) and os.isatty(fd)
