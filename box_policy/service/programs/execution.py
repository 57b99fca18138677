"""One program in a box: what it writes, piece by piece, and how it ends.

What it writes is read only when somebody asks for it. A program whose reader is slow waits in its own
``write()``; nothing is buffered here.
"""

import asyncio
import errno
import fcntl
import os
import signal
import struct
import termios
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final, Literal

from box_policy.sandbox.launcher import Box, Program, ProgramSpec

type StreamName = Literal["stdout", "stderr"]

TIMED_OUT: Final = 124
"""Exit code of a program that was killed as its time was over, as of timeout(1)."""

_PIECE: Final = 65536
_KILL_PATIENCE: Final = 5.0
"""Seconds for what was killed to end. A paused box may keep it for longer."""
_TERMINAL_PATIENCE: Final = 1.0
"""Seconds, after the end of a terminal's program, for what others still write to it."""
_TERMINAL_REST: Final = 1 << 20
"""Bytes that may still come from a terminal after that end: more than the kernel ever holds."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of what a program wrote."""

    stream: StreamName
    data: bytes
    """Never empty."""


class Execution:
    """A program that runs. Made by :func:`executing`; one task at a time may read from it."""

    def __init__(
        self, program: Program, outputs: dict[int, StreamName], stdin: int | None, timeout: float | None
    ) -> None:
        self.program = program
        self.stdin = stdin
        """The writing end of its standard input, not blocking; whoever closes it sets it to None."""
        self.timed_out = False
        self._outputs = outputs
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.ensure_future(program.wait())
        self._end.add_done_callback(self._on_end)
        self._given_up = False
        self._rests: dict[int, int] | None = None
        self._rest_deadline = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._timer = None if timeout is None else self._loop.call_later(timeout, self._time_out)

    @property
    def exit_code(self) -> int:
        """How it ended: its exit status, 128 + n after signal n, or :data:`TIMED_OUT`.

        To be asked for once :meth:`next_piece` has given None.
        """
        if self.timed_out:
            return TIMED_OUT
        status = self._end.result()
        return status if status >= 0 else 128 - status

    @property
    def has_ended(self) -> bool:
        """Whether the program itself has; what it wrote may not all have been read."""
        return self._end.done() or self._given_up

    def send_signal(self, number: int) -> None:
        """Send a signal to its process group; nothing happens if it has ended."""
        if not self.has_ended:
            self.program.send_signal(number)

    async def next_piece(self) -> Piece | None:
        """What it writes next; None once it has ended and all that it wrote has been given.

        What others write, to whom it left its standard output, is not waited for.
        """
        # Whoever takes the pieces may never have to wait for one; others want their turn.
        await asyncio.sleep(0)
        while True:
            if self.has_ended and self._rests is None:
                self._begin_rest()
            piece = self._read()
            if piece is not None:
                return piece
            if self._rests is None:
                await self._readable(None)
            elif not self._terminal_may_follow():
                self._close_outputs()
                return None
            else:
                await self._readable(self._rest_deadline - self._loop.time())

    async def close(self) -> None:
        """Kill the program if it runs, and let go of everything. Its end is not waited for."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._end.done():
            self.program.send_signal(signal.SIGKILL)
            self._end.cancel()
        self._close_outputs()
        if self.stdin is not None:
            self._loop.remove_writer(self.stdin)
            os.close(self.stdin)
            self.stdin = None
        await asyncio.gather(self._end, return_exceptions=True)

    def _time_out(self) -> None:
        self.timed_out = True
        self.program.send_signal(signal.SIGKILL)
        self._timer = self._loop.call_later(_KILL_PATIENCE, self._give_up)

    def _give_up(self) -> None:
        self._given_up = True
        self._wake()

    def _on_end(self, _: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _readable(self, within: float | None) -> None:
        """Return when there may be something to read, or the program has ended, or time is over."""
        waiter = self._waiter = self._loop.create_future()
        watched = list(self._outputs)
        for fd in watched:
            self._loop.add_reader(fd, self._wake)
        timer = None if within is None else self._loop.call_later(max(within, 0.0), self._wake)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
            for fd in watched:
                # Closed meanwhile, by close(): its number may be another's by now.
                if fd in self._outputs:
                    self._loop.remove_reader(fd)

    def _read(self) -> Piece | None:
        for fd, name in list(self._outputs.items()):
            size = _PIECE if self._rests is None else min(_PIECE, self._rests[fd])
            try:
                data = os.read(fd, size)
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno != errno.EIO:  # the last process of a terminal has let go of it
                    raise
                data = b""
            if not data:
                self._close_output(fd)
                continue
            if self._rests is not None:
                self._rests[fd] -= len(data)
            # The other one first, next time.
            self._outputs[fd] = self._outputs.pop(fd)
            return Piece(name, data)
        return None

    def _begin_rest(self) -> None:
        # What the program wrote is in its pipes by now. More than that is somebody else's, and may go on
        # for ever.
        self._rest_deadline = self._loop.time() + _TERMINAL_PATIENCE
        self._rests = {
            fd: _TERMINAL_REST if fd == self.program.terminal else _waiting_bytes(fd) for fd in self._outputs
        }

    def _terminal_may_follow(self) -> bool:
        """Whether a terminal may bring more: the kernel carries on what was written by and by."""
        return self.program.terminal in self._outputs and self._loop.time() < self._rest_deadline

    def _close_outputs(self) -> None:
        for fd in list(self._outputs):
            self._close_output(fd)

    def _close_output(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        del self._outputs[fd]
        os.close(fd)


@asynccontextmanager
async def executing(
    box: Box,
    spec: ProgramSpec,
    *,
    timeout: float | None = None,  # noqa: ASYNC109  # the program's; whoever reads from it goes on
    with_stdin: bool = False,
) -> AsyncIterator[Execution]:
    """Run a program. It gets pipes, or the terminal that ``spec`` asks for; it is killed at the end.

    Args:
        timeout: Seconds after which it is killed, with its process group.
        with_stdin: whether it gets a standard input; without, or with a terminal, it is /dev/null or that.

    Raises:
        ProgramNotFoundError: there is none of that name.
        SandboxError: it can't be run.
    """
    ours: list[int] = []
    theirs: list[int] = []
    stdin: int | None = None
    outputs: dict[int, StreamName] = {}
    try:
        if spec.terminal is None:
            for name in ("stdout", "stderr"):
                outputs[_pipe(ours, theirs)] = name
            spec = replace(spec, stdout=theirs[0], stderr=theirs[1])
            if with_stdin:
                reader, stdin = os.pipe()
                theirs.append(reader)
                ours.append(stdin)
                spec = replace(spec, stdin=reader)
            for fd in ours:
                os.set_blocking(fd, False)
    except BaseException:
        _close(ours + theirs)
        raise
    try:
        program = await _start(box, spec, theirs)
    except BaseException:
        _close(ours)
        raise
    if program.terminal is not None:
        os.set_blocking(program.terminal, False)
        outputs[program.terminal] = "stdout"
        if with_stdin:
            # A descriptor of its own: either may be closed while the other goes on.
            stdin = os.dup(program.terminal)
    execution = Execution(program, outputs, stdin, timeout)
    try:
        yield execution
    finally:
        await execution.close()


def _pipe(ours: list[int], theirs: list[int]) -> int:
    reader, writer = os.pipe()
    ours.append(reader)
    theirs.append(writer)
    return reader


async def _start(box: Box, spec: ProgramSpec, theirs: list[int]) -> Program:
    starting = asyncio.ensure_future(box.start(spec))
    # Not before: until then the box may still have to send them.
    starting.add_done_callback(lambda _: _close(theirs))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # Cancelling it as well could lose the program at the very moment that it has started.
        starting.add_done_callback(_end_unwanted)
        raise


def _end_unwanted(starting: asyncio.Future[Program]) -> None:
    if starting.cancelled() or starting.exception() is not None:
        return
    program = starting.result()
    program.send_signal(signal.SIGKILL)
    if program.terminal is not None:
        os.close(program.terminal)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def _waiting_bytes(pipe: int) -> int:
    size: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    return size
