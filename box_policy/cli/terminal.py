"""Ties the caller's standard streams to a program in a box.

A terminal is never given to the box: whoever holds it could push input into the caller's shell. The
program gets a pseudo-terminal of its own, and bytes are carried between the two.
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
from dataclasses import dataclass

_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Streams:
    """What to give the program for each of its standard streams; None: its terminal."""

    stdin: int | None
    stdout: int | None
    stderr: int | None

    @property
    def terminal(self) -> bool:
        """Is one of the caller's streams a terminal?"""
        return None in (self.stdin, self.stdout, self.stderr)


def callers_streams() -> Streams:
    """The caller's own streams, as far as they can be handed on as they are."""
    return Streams(*(None if _is_terminal(fd) else fd for fd in (0, 1, 2)))


def _is_terminal(fd: int) -> bool:
    try:
        return stat.S_ISCHR(os.fstat(fd).st_mode) and os.isatty(fd)
    except OSError:
        return False


def window_size(streams: Streams) -> tuple[int, int]:
    """Rows and columns of the caller's terminal."""
    for fd, given in enumerate((streams.stdin, streams.stdout, streams.stderr)):
        if given is None:
            try:
                size = os.get_terminal_size(fd)
            except OSError:
                continue
            return size.lines, size.columns
    return 24, 80


def set_window_size(master: int, size: tuple[int, int]) -> None:
    """Tell a pseudo-terminal how large it is now."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


@contextlib.contextmanager
def raw_mode(streams: Streams) -> Iterator[None]:
    """The caller's terminal passes every key on, Ctrl-C included, until the end of the block."""
    if streams.stdin is not None:
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


class TerminalBridge:
    """Carries bytes between the caller's terminal and a pseudo-terminal's master side.

    By threads: a terminal that is held (Ctrl-S) blocks who writes to it, and that must not be the gate.
    """

    def __init__(self, master: int, streams: Streams) -> None:
        self._master = master
        self._output_fd = 1 if streams.stdout is None else 2
        self._wake_read, self._wake_write = os.pipe()
        self._output = threading.Thread(target=self._carry_output, name="terminal output", daemon=True)
        self._input = threading.Thread(target=self._carry_input, name="terminal input", daemon=True)
        self._output.start()
        if streams.stdin is None:
            self._input.start()

    def finish(self) -> None:
        """Once the program has ended: carry what it wrote last, and leave the caller's input alone."""
        self._output.join(timeout=2)
        os.close(self._wake_write)
        if self._input.is_alive():
            self._input.join(timeout=2)
        os.close(self._wake_read)
        os.close(self._master)

    def _carry_output(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the last process has closed its side
            while data := os.read(self._master, _CHUNK):
                _write(self._output_fd, data)

    def _carry_input(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([0, self._wake_read], [], [])
                if self._wake_read in ready:
                    return
                data = os.read(0, _CHUNK)
                if not data:
                    return
                _write(self._master, data)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
