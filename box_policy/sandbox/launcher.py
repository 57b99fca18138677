"""What a backend is: something that starts boxes and hands out their listeners.

A box's network leads nowhere but to its listeners. They are made inside the box's network
namespace and held by the gate outside; whoever holds them decides what the box may reach.
"""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class SandboxError(Exception):
    """A box, or a program in it, could not be started. The message says what, where and what to do."""


class ProgramNotFoundError(SandboxError):
    """The program to run does not exist in the box."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """The sockets through which a box reaches the gate: one of each kind per address family it has."""

    tcp: tuple[socket.socket, ...]
    """Listening. Every TCP connection the box opens to another host arrives here."""
    dns_udp: tuple[socket.socket, ...]
    """Bound. Every datagram to port 53, whatever its address, arrives here."""
    dns_tcp: tuple[socket.socket, ...]
    """Listening. Every TCP connection to port 53, whatever its address, arrives here."""

    def close(self) -> None:
        """Close all of them. The box keeps running, with no way out."""
        for sock in (*self.tcp, *self.dns_udp, *self.dns_tcp):
            sock.close()


@dataclass(frozen=True, slots=True)
class BoxSpec:
    """What a box is made of."""

    id: str
    workdir: Path | None = None
    """A host directory mounted read-write as /workspace. Absent: an empty one that dies with the box.

    What it holds is the box's to use: a unix socket in it can be connected to from the box."""
    read_only: Sequence[Path] = ()
    """Further host directories, visible read-only at their own paths."""
    hostname: str = "box"
    scratch_bytes: int = 2 << 30
    """The most that the box's own writable directories (/tmp, its home, an absent ``workdir``) hold
    together, in memory."""


@dataclass(frozen=True, slots=True)
class ProgramSpec:
    """A program to run in a box."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to, or replacing, the box's own small environment. Nothing of the host's is inherited."""
    cwd: str = "/workspace"
    stdin: int | None = None
    """A descriptor to become the program's: a pipe or a character device. None: its terminal if it has
    one, else /dev/null."""
    stdout: int | None = None
    stderr: int | None = None
    terminal: tuple[int, int] | None = None
    """Rows and columns of a new pseudo-terminal in the box, which becomes the controlling one and
    stands in for every descriptor above that is None."""


class Program(Protocol):
    """A running program."""

    @property
    def terminal(self) -> int | None:
        """The master side of its pseudo-terminal, owned by the caller from now on."""

    async def wait(self) -> int:
        """Its exit status; ``-n`` if signal n ended it, or the box died (SIGKILL)."""

    def send_signal(self, number: int) -> None:
        """Send a signal to the program's process group; nothing happens if it has ended."""


class Box(Protocol):
    """A running box."""

    @property
    def id(self) -> str: ...

    @property
    def listeners(self) -> Listeners: ...

    async def start(self, program: ProgramSpec) -> Program:
        """Run a program. ProgramNotFoundError if there is none of that name, SandboxError otherwise."""

    async def closed(self) -> None:
        """Return once the box has died, for whatever reason."""

    async def close(self) -> None:
        """Kill every process in the box and close its listeners. Repeating it does nothing."""


class Launcher(Protocol):
    """A backend."""

    async def create(self, spec: BoxSpec) -> Box:
        """Start a box. It runs nothing yet. SandboxError if this machine can't."""

    async def close(self) -> None:
        """Close every box of this launcher and stop what serves it."""
