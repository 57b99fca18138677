"""A box of namespaces, seen from the caller's event loop."""

import asyncio
import contextlib
import os
import signal
import socket
from types import MappingProxyType
from typing import Any

from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces import limits
from box_policy.sandbox.namespaces.messages import Message
from box_policy.sandbox.namespaces.served_box import START_TIMEOUT, ServedBox, take_listeners, taken

CLOSE_TIMEOUT = 10.0
"""Seconds that the kernel may take to end what was killed."""


class NamespaceBox(ServedBox):
    """A box. ``control`` leads to its outer process and its pid 1."""

    def __init__(self, spec: BoxSpec, control: socket.socket) -> None:
        super().__init__(spec, control)
        self.was_begun = False
        """Whether a process of the box has ever reported."""
        self._processes: dict[str, int] = {}  # pidfds of those that still run
        self._orders: dict[int, asyncio.Future[None]] = {}

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

    def _kill(self, process: str) -> None:
        pidfd = self._processes.get(process)
        if pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _abandon(self) -> None:
        self._kill("init")
        self._kill("outer")

    def _handle(self, message: Message, fds: list[int]) -> None:
        event = message["event"]
        if event == "outer" and "outer" not in self._processes:
            self._watch("outer", taken(fds, 1)[0])
            self.was_begun = True
        elif event == "network" and self._listeners is None:
            self._watch("init", fds.pop(0))
            self._listeners = take_listeners(fds)
            self._limits = MappingProxyType(limits.describe(self._spec, message["cgroups"]))
            self._check_ready()
        elif event == "done":
            self.is_paused = bool(message["paused"])
            order = self._orders.pop(int(message["id"]), None)
            if order is not None and not order.done():
                order.set_result(None)
        else:
            super()._handle(message, fds)

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

    def _has_ended(self) -> bool:
        return not self._processes

    def _unanswered(self) -> list[asyncio.Future[Any]]:
        return [*super()._unanswered(), *self._orders.values()]
