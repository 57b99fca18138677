"""What a backend is: something that starts boxes and hands out their listeners.

A box's network leads nowhere but to its listeners. They are made inside the box's network
namespace and held by the gate outside; whoever holds them decides what the box may reach.
"""

import socket
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol


class SandboxError(Exception):
    """A box, or a program in it, could not be started. The message says what, where and what to do."""


class ProgramNotFoundError(SandboxError):
    """The program to run does not exist in the box."""


class ProgramRefusedError(SandboxError):
    """There is such a program, but it can't be run, or not in the directory where it should."""


class BoxPausedError(SandboxError):
    """What was asked for takes a running process in the box, and the box is paused."""


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


type Limit = Literal["memory", "pids", "cpus", "disk"]
"""What of a box's can be bounded."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a box may use, where the host lets its bounds be set. None: as much as there is."""

    memory_bytes: int | None = None
    """Held by its programs and its own writable directories together."""
    pids: int | None = None
    """Processes and threads at one time."""
    cpus: float | None = None
    """Processors' worth of time."""


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
    directories: Sequence[str] = ()
    """Directories of the box's own to make in those, by their paths in the box."""
    rootfs: Path | None = None
    """A directory with the root of a Linux system, whose programs and libraries the box has, read-only, in
    place of the host's."""
    limits: Limits = field(default_factory=Limits)
    image: str | None = None
    """The container image that a box of a container engine is made of. None: the launcher's default."""


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
    def pid(self) -> int:
        """Its process id, as the box numbers its processes."""

    @property
    def terminal(self) -> int | None:
        """The master side of its pseudo-terminal, owned by the caller from now on."""

    async def wait(self) -> int:
        """Its exit status; ``-n`` if signal n ended it, or the box died (SIGKILL)."""

    def send_signal(self, number: int) -> None:
        """Send a signal to the program's process group; nothing happens if it has ended."""


type FileType = Literal["file", "directory", "symlink", "other"]


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of a box, as the box has it."""

    name: str
    path: str
    """Absolute, in the box."""
    type: FileType
    size: int
    """Bytes."""
    modified: float
    """Seconds since the epoch."""
    inode: int


class Files(Protocol):
    """A box's files.

    Every operation is done inside the box, with the rights of its programs: no path, link or mount leads
    further than they get. Paths are absolute, and the box's. What the box answers is the box's word.

    Failures are OSError, as the box's kernel says them (FileNotFoundError, IsADirectoryError, ...; EFBIG if
    a bound is passed), with the path; SandboxError if the box has ended, BoxPausedError if it is paused.
    """

    async def read(self, path: str, *, offset: int = 0, length: int | None = None, limit: int) -> bytes:
        """What a regular file holds, or ``length`` bytes of it from ``offset`` on. OSError EFBIG if that
        is more than ``limit`` bytes."""

    def open(self, path: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """A regular file in pieces. Entering the context raises what reading does."""

    async def write(self, path: str, content: bytes | AsyncIterable[bytes]) -> None:
        """Make or replace a regular file, whole or not at all; directories above it are made."""

    async def list(self, path: str, *, limit: int) -> list[FileInfo]:
        """What is in a directory, by name; links are not followed. OSError EFBIG past ``limit`` entries."""

    async def stat(self, path: str, *, follow: bool = False) -> FileInfo:
        """What there is at a path; ``follow`` looks behind a link."""

    async def mkdir(self, path: str, *, parents: bool = False) -> None:
        """Make a directory; ``parents`` makes those above it, and takes one that is there already."""

    async def rename(self, source: str, target: str) -> None:
        """Move a file or directory, as rename(2) does."""

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file or link, or with ``recursive`` a directory and all in it."""

    def archive(self, paths: Sequence[str]) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """These directories and all in them as one tar stream (POSIX.1-2001), of which each file is as it
        was when it was read. Entering the context, or a later piece, may raise."""

    async def restore(self, archive: AsyncIterable[bytes]) -> None:
        """Bring back what :meth:`archive` gave."""


class Box(Protocol):
    """A running box."""

    @property
    def id(self) -> str: ...

    @property
    def listeners(self) -> Listeners: ...

    @property
    def limits(self) -> Mapping[Limit, str]:
        """By which means each bound is held that is held at all, in words for people."""

    @property
    def files(self) -> Files: ...

    async def pause(self) -> None:
        """Stop every process of the box; it starts none. What it has open stays so. Repeating it does
        nothing. SandboxError if the box has ended."""

    async def resume(self) -> None:
        """Let the processes go on."""

    async def start(self, program: ProgramSpec) -> Program:
        """Run a program.

        ProgramNotFoundError if there is none of that name, ProgramRefusedError if it can't be run,
        BoxPausedError if the box is paused, SandboxError if it has ended, or can't.
        """

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
