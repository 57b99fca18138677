"""Running programs in a box, for tests."""

import asyncio
import os
import resource
import shutil
import struct
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest

from box_policy.sandbox.launcher import Box, BoxSpec, ProgramSpec

PATIENCE = 20.0
"""Seconds until a test gives up on a box."""
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended, and what it wrote to standard output and error."""

    status: int
    output: str


class Makes[SomeBox: Box](Protocol):
    """A launcher of boxes of some kind."""

    async def create(self, spec: BoxSpec) -> SomeBox: ...


@asynccontextmanager
async def new_box[SomeBox: Box](
    launcher: Makes[SomeBox], spec: BoxSpec | None = None
) -> AsyncIterator[SomeBox]:
    """A box that is closed at the end."""
    box = await launcher.create(spec or BoxSpec("test"))
    try:
        yield box
    finally:
        await box.close()


async def readable(fd: int) -> None:
    """Return when a descriptor can be read, or has ended."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(fd)


def open_descriptors() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """As if this process had all the descriptors that it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def read_all(fd: int) -> bytes:
    """Everything from a pipe until its end. Takes the descriptor over."""
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(fd, "rb", 0))
    try:
        return await reader.read()
    finally:
        transport.close()


async def run(box: Box, *argv: str, env: Mapping[str, str] | None = None, cwd: str = "/workspace") -> Outcome:
    """Run a program to its end."""
    reader, writer = os.pipe()
    async with asyncio.timeout(PATIENCE):
        try:
            program = await box.start(ProgramSpec(argv, env=env or {}, cwd=cwd, stdout=writer, stderr=writer))
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        output = await read_all(reader)
        return Outcome(await program.wait(), output.decode(errors="replace"))


async def shell(box: Box, script: str) -> Outcome:
    """Run a shell script."""
    return await run(box, "/bin/sh", "-c", script)


def box_python() -> str:
    """An interpreter that every box on this machine has; the test is skipped if there is none."""
    found = shutil.which("python3", path=SYSTEM_PATH)
    if found is None:
        pytest.skip("no python3 in a system directory, so none in a box")
    return found


async def python(box: Box, source: str, *arguments: str) -> Outcome:
    """Run Python code in the box."""
    return await run(box, box_python(), "-I", "-c", source, *arguments)


@dataclass(frozen=True, slots=True)
class Process:
    """A process as /proc shows it."""

    pid: int
    parent: int
    name: str
    network: str
    """Its network namespace, as the link text of /proc/<pid>/ns/net; empty if that can't be read."""


def processes() -> list[Process]:
    """All processes of this pid namespace that have not ended."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                head, _, tail = (directory / "stat").read_text().rpartition(")")
                state, parent = tail.split()[:2]
                if state != "Z":
                    name = head.partition("(")[2]
                    found.append(Process(int(directory.name), int(parent), name, _network(directory)))
            except OSError:
                continue  # ended meanwhile
    return found


def _network(directory: Path) -> str:
    try:
        return str((directory / "ns/net").readlink())
    except OSError:
        return ""


def descendants(pid: int) -> list[Process]:
    """The processes below ``pid``, parents first."""
    everything = processes()
    found: list[Process] = []
    parents = {pid}
    while True:
        children = [p for p in everything if p.parent in parents and p not in found]
        if not children:
            return found
        found += children
        parents = {child.pid for child in children}


@dataclass(slots=True)
class Watch:
    """Notices the end of processes."""

    pidfds: list[int] = field(default_factory=list)

    def add(self, pids: Sequence[int]) -> None:
        """Watch these as well."""
        self.pidfds += [os.pidfd_open(pid) for pid in pids]

    async def all_ended(self) -> None:
        """Return when all have ended."""
        async with asyncio.timeout(PATIENCE):
            for pidfd in self.pidfds:
                await readable(pidfd)
                os.close(pidfd)
        self.pidfds.clear()


def parse_sockaddr_in(data: bytes) -> tuple[str, int]:
    """struct sockaddr_in as SO_ORIGINAL_DST gives it."""
    port, address = struct.unpack_from("!2xH4s", data)
    return ".".join(str(byte) for byte in address), port
