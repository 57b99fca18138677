"""A box that is served by its pid 1 over a control socket, and its programs: the caller's side.

What backends have in common. How a box is made, paused and ended is theirs.
"""

import asyncio
import os
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from box_policy.sandbox.launcher import (
    BoxPausedError,
    BoxSpec,
    Limit,
    Listeners,
    ProgramNotFoundError,
    ProgramRefusedError,
    ProgramSpec,
    SandboxError,
)
from box_policy.sandbox.namespaces import messages
from box_policy.sandbox.namespaces.channel import Channel
from box_policy.sandbox.namespaces.files import BoxFiles
from box_policy.sandbox.namespaces.messages import Message, MessageError
from box_policy.sandbox.namespaces.requests import program_request

START_TIMEOUT = 30.0
"""Seconds that making a box, or starting a program in it, may take."""

_LAST_SIGNAL = 64
_KILLED = -int(signal.SIGKILL)


class BoxProgram:
    """A program in a box."""

    def __init__(self, box: "ServedBox", number: int, pid: int, terminal: int | None) -> None:
        self._box = box
        self._number = number
        self._pid = pid
        self._terminal = terminal
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int:
        """Its process id, as the box numbers its processes."""
        return self._pid

    @property
    def terminal(self) -> int | None:
        """The master side of its pseudo-terminal, owned by the caller from now on."""
        return self._terminal

    async def wait(self) -> int:
        """Its exit status; ``-n`` if signal n ended it, or the box died (SIGKILL)."""
        return await asyncio.shield(self._status)

    def send_signal(self, number: int) -> None:
        """Send a signal to the program's process group; nothing happens if it has ended."""
        if not 0 < number <= _LAST_SIGNAL:
            raise ValueError(f"no such signal: {number}")
        if not self._status.done():
            self._box.send_signal(self._number, int(number))

    def end(self, status: int) -> None:
        """Record that it has ended."""
        if not self._status.done():
            self._status.set_result(status)


class ServedBox(ABC):
    """A box. ``control`` leads to its pid 1."""

    def __init__(self, spec: BoxSpec, control: socket.socket) -> None:
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._listeners: Listeners | None = None
        self._is_set_up = False
        self._failure = "the box ended"
        self._starting: dict[int, asyncio.Future[BoxProgram]] = {}
        self._programs: dict[int, BoxProgram] = {}
        self._last_number = 0
        self._limits: Mapping[Limit, str] = MappingProxyType({})
        self._files = BoxFiles(self)
        self.is_paused = False
        """Whether its processes have been stopped."""
        self._channel = Channel(control, self._on_message, self._on_end)
        self._channel_open = True

    @property
    def id(self) -> str:
        """The id it was made with."""
        return self._spec.id

    @property
    def listeners(self) -> Listeners:
        """The sockets through which it reaches the gate."""
        if self._listeners is None:
            raise SandboxError("the box is not ready")
        return self._listeners

    @property
    def limits(self) -> Mapping[Limit, str]:
        """By which means each bound is held that is held at all, in words for people."""
        return self._limits

    @property
    def files(self) -> BoxFiles:
        """The files in it."""
        return self._files

    async def ready(self) -> None:
        """Return once it is made. SandboxError if that fails or takes too long; the box is then gone."""
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await asyncio.shield(self._ready)
        except TimeoutError:
            await self.close()
            raise SandboxError(f"the box was not ready within {START_TIMEOUT:.0f} seconds") from None
        except BaseException:
            await self.close()
            raise

    async def start(self, program: ProgramSpec) -> BoxProgram:
        """Run a program. ProgramNotFoundError if there is none of that name, SandboxError otherwise."""
        request, fds = program_request(program)
        return await self._start(request, fds, program.argv[0])

    async def start_file_worker(
        self, operation: dict[str, Any], stdin: int | None, stdout: int
    ) -> BoxProgram:
        """Run a process that does one operation on the box's files; see ``file_worker``."""
        request = {
            "op": "start",
            "files": operation,
            "terminal": None,
            "stdio": [stdin is not None, True, False],
        }
        return await self._start(
            request, [stdout] if stdin is None else [stdin, stdout], "an operation on files"
        )

    def _next_number(self) -> int:
        if self._gone.done() or not self._channel_open:
            raise SandboxError("the box has ended")
        self._last_number += 1
        return self._last_number

    async def _start(self, request: Message, fds: Sequence[int], name: str) -> BoxProgram:
        number = self._next_number()
        started: asyncio.Future[BoxProgram] = self._loop.create_future()
        self._starting[number] = started
        try:
            self._channel.send(request | {"id": number}, fds)
            async with asyncio.timeout(START_TIMEOUT):
                return await started
        except asyncio.CancelledError:
            if started.done() and not started.cancelled() and started.exception() is None:
                _end_unwanted(started.result())  # it started in the very turn in which nobody waits any more
            raise
        except MessageError as error:
            raise ProgramRefusedError(f"{name}: arguments and environment are too large: {error}") from None
        except TimeoutError:
            raise SandboxError(f"{name}: did not start within {START_TIMEOUT:.0f} seconds") from None
        except OSError as error:
            raise SandboxError(f"{name}: {error.strerror or error}") from None
        finally:
            # Should it start after all, nobody waits for it: it is killed then.
            self._starting.pop(number, None)

    async def closed(self) -> None:
        """Return once every process of the box has ended, for whatever reason."""
        await asyncio.shield(self._gone)

    @abstractmethod
    async def pause(self) -> None:
        """Stop every process of the box; it starts none. Repeating it does nothing."""

    @abstractmethod
    async def resume(self) -> None:
        """Let the processes go on."""

    @abstractmethod
    async def close(self) -> None:
        """Kill every process in the box and close its listeners. Repeating it does nothing."""

    @abstractmethod
    def _abandon(self) -> None:
        """Kill what speaks there: it is not the box's pid 1, or no more."""

    @abstractmethod
    def _has_ended(self) -> bool:
        """Whether no process of the box is left, now that its channel is closed."""

    def send_signal(self, number: int, signal_number: int) -> None:
        """Have pid 1 signal a program. A box that leaves thousands unread gets but the deadly ones."""
        self._channel.notify(
            {"op": "signal", "id": number, "number": signal_number},
            always=signal_number == signal.SIGKILL,
        )

    def _close_channel(self) -> None:
        self._channel.close()
        self._on_end()

    def _on_end(self) -> None:
        self._channel_open = False
        self._check_gone()

    def _on_message(self, message: Message, fds: list[int]) -> None:
        try:
            self._handle(message, fds)
        except Exception:
            # Not what pid 1 says. Whatever spoke there, nothing of it may live on.
            messages.close_all(fds)
            self._failure = "the box broke the protocol"
            self._close_channel()
            self._abandon()

    def _handle(self, message: Message, fds: list[int]) -> None:
        """Take a message in; ValueError, or whatever it raises, if it is none of pid 1's."""
        event = message["event"]
        if event == "ready":
            self._is_set_up = True
            self._check_ready()
        elif event == "failed":
            self._failure = str(message["error"])
            self._close_channel()
        elif event == "started":
            self._on_started(message, fds)
        elif event == "refused":
            self._on_refused(int(message["id"]), _refusal(message))
        elif event == "ended":
            ended = self._programs.pop(int(message["id"]), None)
            if ended is not None:
                ended.end(int(message["status"]))
        else:
            raise ValueError(event)

    def _check_ready(self) -> None:
        if self._is_set_up and self._listeners is not None and not self._ready.done():
            self._ready.set_result(None)

    def _on_started(self, message: Message, fds: list[int]) -> None:
        number, pid = int(message["id"]), int(message["pid"])
        waiting = self._starting.pop(number, None)
        if waiting is None or waiting.done():
            messages.close_all(taken(fds, len(fds)))
            self.send_signal(number, signal.SIGKILL)
            return
        if message["terminal"] and not fds:
            self.send_signal(number, signal.SIGKILL)
            waiting.set_exception(SandboxError("no descriptor was left for the program's terminal"))
            return
        terminal = taken(fds, 1)[0] if fds else None
        program = self._programs[number] = BoxProgram(self, number, pid, terminal)
        waiting.set_result(program)

    def _on_refused(self, number: int, reason: SandboxError) -> None:
        waiting = self._starting.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_exception(reason)

    def _check_gone(self) -> None:
        if self._channel_open or self._gone.done() or not self._has_ended():
            return
        self._gone.set_result(None)
        if not self._ready.done():
            self._ready.set_exception(SandboxError(self._failure))
            self._ready.exception()  # retrieved here: nobody need be waiting for it
        for waiting in self._unanswered():
            if not waiting.done():
                waiting.set_exception(SandboxError(self._failure))
        for program in self._programs.values():
            program.end(_KILLED)
        self._programs.clear()

    def _unanswered(self) -> list[asyncio.Future[Any]]:
        """What waits for an answer of pid 1's."""
        return [*self._starting.values()]


def taken(fds: list[int], count: int) -> list[int]:
    """Take ``count`` descriptors over from the list of those to be closed on an error."""
    if len(fds) != count:
        raise ValueError(f"{len(fds)} descriptors, not {count}")
    taken = fds[:]
    fds.clear()
    return taken


def _end_unwanted(program: BoxProgram) -> None:
    program.send_signal(signal.SIGKILL)
    if program.terminal is not None:
        os.close(program.terminal)


def _refusal(message: Message) -> SandboxError:
    text = str(message["error"])
    if message["paused"]:
        return BoxPausedError(text)
    return ProgramRefusedError(text) if int(message["errno"]) else ProgramNotFoundError(text)


def take_listeners(fds: list[int]) -> Listeners:
    """The listeners that come as these descriptors. ValueError if they can't be."""
    if not fds or len(fds) % 3:
        raise ValueError(f"{len(fds)} listeners")
    sockets = tuple(socket.socket(fileno=fd) for fd in taken(fds, len(fds)))
    for sock in sockets:
        sock.setblocking(False)  # the object's own mode; it does not look at the descriptor's
    families = len(sockets) // 3
    return Listeners(sockets[:families], sockets[families : 2 * families], sockets[2 * families :])
