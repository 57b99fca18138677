"""A box and its programs, seen from the caller's event loop."""

import asyncio
import contextlib
import os
import signal
import socket
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
from box_policy.sandbox.namespaces import limits, messages
from box_policy.sandbox.namespaces.channel import Channel
from box_policy.sandbox.namespaces.files import NamespaceFiles
from box_policy.sandbox.namespaces.messages import Message, MessageError
from box_policy.sandbox.namespaces.requests import program_request

START_TIMEOUT = 30.0
"""Seconds that making a box, or starting a program in it, may take."""
CLOSE_TIMEOUT = 10.0
"""Seconds that the kernel may take to end what was killed."""

_LAST_SIGNAL = 64
_KILLED = -int(signal.SIGKILL)


class NamespaceProgram:
    """A program in a namespace box."""

    def __init__(self, box: "NamespaceBox", number: int, pid: int, terminal: int | None) -> None:
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


class NamespaceBox:
    """A box. ``control`` leads to its outer process and its pid 1."""

    def __init__(self, spec: BoxSpec, control: socket.socket) -> None:
        self._spec = spec
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._listeners: Listeners | None = None
        self._is_set_up = False
        self.was_begun = False
        """Whether a process of the box has ever reported."""
        self._failure = "the box ended"
        self._processes: dict[str, int] = {}  # pidfds of those that still run
        self._starting: dict[int, asyncio.Future[NamespaceProgram]] = {}
        self._programs: dict[int, NamespaceProgram] = {}
        self._orders: dict[int, asyncio.Future[None]] = {}
        self._last_number = 0
        self._limits: Mapping[Limit, str] = MappingProxyType({})
        self._files = NamespaceFiles(self)
        self.is_paused = False
        """Whether its pid 1 has said so."""
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
    def files(self) -> NamespaceFiles:
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

    async def start(self, program: ProgramSpec) -> NamespaceProgram:
        """Run a program. ProgramNotFoundError if there is none of that name, SandboxError otherwise."""
        request, fds = program_request(program)
        return await self._start(request, fds, program.argv[0])

    async def start_file_worker(
        self, operation: dict[str, Any], stdin: int | None, stdout: int
    ) -> NamespaceProgram:
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

    async def pause(self) -> None:
        """Stop every process of the box; it starts none. Repeating it does nothing."""
        await self._order("pause")

    async def resume(self) -> None:
        """Let the processes go on."""
        await self._order("resume")

    async def _order(self, operation: str) -> None:
        number = self._next_number()
        done = self._orders[number] = self._loop.create_future()
        try:
            self._channel.send({"op": operation, "id": number})
            async with asyncio.timeout(START_TIMEOUT):
                await done
        except TimeoutError:
            raise SandboxError(f"the box did not {operation} within {START_TIMEOUT:.0f} seconds") from None
        except OSError as error:
            raise SandboxError(f"the box can't {operation}: {error.strerror or error}") from None
        finally:
            self._orders.pop(number, None)

    def _next_number(self) -> int:
        if self._gone.done() or not self._channel_open:
            raise SandboxError("the box has ended")
        self._last_number += 1
        return self._last_number

    async def _start(self, request: Message, fds: Sequence[int], name: str) -> NamespaceProgram:
        number = self._next_number()
        started: asyncio.Future[NamespaceProgram] = self._loop.create_future()
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

    async def close(self) -> None:
        """Kill every process in the box and close its listeners. Repeating it does nothing."""
        self._close_channel()
        if self._listeners is not None:
            self._listeners.close()
        self._kill("init" if "init" in self._processes else "outer")
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.shield(self._gone)
        except TimeoutError:
            self._kill("outer")

    def send_signal(self, number: int, signal_number: int) -> None:
        """Have pid 1 signal a program. A box that leaves thousands unread gets but the deadly ones."""
        self._channel.notify(
            {"op": "signal", "id": number, "number": signal_number},
            always=signal_number == signal.SIGKILL,
        )

    def _kill(self, process: str) -> None:
        pidfd = self._processes.get(process)
        if pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

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
            self._kill("init")
            self._kill("outer")

    def _handle(self, message: Message, fds: list[int]) -> None:
        event = message["event"]
        if event == "outer" and "outer" not in self._processes:
            self._watch("outer", _taken(fds, 1)[0])
            self.was_begun = True
        elif event == "network" and self._listeners is None:
            self._watch("init", fds.pop(0))
            self._listeners = _listeners(fds)
            self._limits = MappingProxyType(limits.describe(self._spec, message["cgroups"]))
        elif event == "ready":
            self._is_set_up = True
        elif event == "failed":
            self._failure = str(message["error"])
            self._close_channel()
        elif event == "started":
            self._on_started(message, fds)
        elif event == "refused":
            self._on_refused(int(message["id"]), _refusal(message))
        elif event == "done":
            self.is_paused = bool(message["paused"])
            order = self._orders.pop(int(message["id"]), None)
            if order is not None and not order.done():
                order.set_result(None)
        elif event == "ended":
            ended = self._programs.pop(int(message["id"]), None)
            if ended is not None:
                ended.end(int(message["status"]))
        else:
            raise ValueError(event)
        if self._is_set_up and self._listeners is not None and not self._ready.done():
            self._ready.set_result(None)

    def _on_started(self, message: Message, fds: list[int]) -> None:
        number, pid = int(message["id"]), int(message["pid"])
        waiting = self._starting.pop(number, None)
        if waiting is None or waiting.done():
            messages.close_all(_taken(fds, len(fds)))
            self.send_signal(number, signal.SIGKILL)
            return
        if message["terminal"] and not fds:
            self.send_signal(number, signal.SIGKILL)
            waiting.set_exception(SandboxError("no descriptor was left for the program's terminal"))
            return
        terminal = _taken(fds, 1)[0] if fds else None
        program = self._programs[number] = NamespaceProgram(self, number, pid, terminal)
        waiting.set_result(program)

    def _on_refused(self, number: int, reason: SandboxError) -> None:
        waiting = self._starting.pop(number, None)
        if waiting is not None and not waiting.done():
            waiting.set_exception(reason)

    def _watch(self, process: str, pidfd: int) -> None:
        self._processes[process] = pidfd
        self._loop.add_reader(pidfd, self._on_exit, process)

    def _on_exit(self, process: str) -> None:
        self._forget(process)
        # What it said last, such as why it failed, may not have been read yet.
        self._channel.read()
        if process == "init":
            self._close_channel()
        self._check_gone()

    def _forget(self, process: str) -> None:
        pidfd = self._processes.pop(process)
        self._loop.remove_reader(pidfd)
        os.close(pidfd)

    def _check_gone(self) -> None:
        if self._processes or self._channel_open or self._gone.done():
            return
        self._gone.set_result(None)
        if not self._ready.done():
            self._ready.set_exception(SandboxError(self._failure))
            self._ready.exception()  # retrieved here: nobody need be waiting for it
        unanswered: list[asyncio.Future[Any]] = [*self._starting.values(), *self._orders.values()]
        for waiting in unanswered:
            if not waiting.done():
                waiting.set_exception(SandboxError(self._failure))
        for program in self._programs.values():
            program.end(_KILLED)
        self._programs.clear()


def _taken(fds: list[int], count: int) -> list[int]:
    """Take ``count`` descriptors over from the list of those to be closed on an error."""
    if len(fds) != count:
        raise ValueError(f"{len(fds)} descriptors, not {count}")
    taken = fds[:]
    fds.clear()
    return taken


def _end_unwanted(program: NamespaceProgram) -> None:
    program.send_signal(signal.SIGKILL)
    if program.terminal is not None:
        os.close(program.terminal)


def _refusal(message: Message) -> SandboxError:
    text = str(message["error"])
    if message["paused"]:
        return BoxPausedError(text)
    return ProgramRefusedError(text) if int(message["errno"]) else ProgramNotFoundError(text)


def _listeners(fds: list[int]) -> Listeners:
    if not fds or len(fds) % 3:
        raise ValueError(f"{len(fds)} listeners")
    sockets = tuple(socket.socket(fileno=fd) for fd in _taken(fds, len(fds)))
    for sock in sockets:
        sock.setblocking(False)  # the object's own mode; it does not look at the descriptor's
    families = len(sockets) // 3
    return Listeners(sockets[:families], sockets[families : 2 * families], sockets[2 * families :])
