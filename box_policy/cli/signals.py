"""The caller's signals, while a program runs on the caller's behalf."""

import asyncio
import signal
from typing import Final, Self

from box_policy.sandbox.launcher import Program

_FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE: Final = 3
"""Interrupts after which the box is closed, whatever the program makes of them."""


class Signals:
    """Passes the caller's signals on to the program. Before there is one, they end the run; while it is
    being started they wait for it."""

    def __init__(self) -> None:
        self.caught = 0
        self.impatient = asyncio.Event()
        self._interrupts = 0
        self._forwarded: list[signal.Signals] = []
        self._starting = False
        self._waiting: list[int] = []
        self._program: Program | None = None
        self._run = asyncio.current_task()

    def __enter__(self) -> Self:
        # What the caller ignores (nohup) stays ignored.
        self._forwarded = [number for number in _FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._forwarded:
            asyncio.get_running_loop().add_signal_handler(number, self._take, number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._forwarded:
            asyncio.get_running_loop().remove_signal_handler(number)

    def hold(self) -> None:
        self._starting = True

    def send_to(self, program: Program) -> None:
        self._program = program
        for number in self._waiting:
            self._take(number)

    def _take(self, number: int) -> None:
        if self._program is None and self._starting:
            self._waiting.append(number)
        elif self._program is not None:
            self._program.send_signal(number)
            self._interrupts += number in _INTERRUPTS
            if self._interrupts >= _PATIENCE:
                self.impatient.set()
        elif self._run is not None and not self.caught:
            self.caught = number
            self._run.cancel()
