"""Programs that the benchmark starts: pinned, measured, and ended with it."""

import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_DESCRIPTORS: Final = 8192
"""Two an idle connection, and some to spare; 1024 is what a login shell allows."""
_PATIENCE: Final = 10.0
"""Seconds that a program gets to answer, and to end."""


class BenchmarkError(Exception):
    """A program of the rig has failed, or the machine lacks something. The message says which."""


class Memory(NamedTuple):
    """In bytes, without what the kernel keeps for it."""

    resident: int
    private: int
    """The part of it that no other process shares."""


class Program:
    """A child process that dies with the benchmark, however that ends."""

    def __init__(self, arguments: Sequence[str | Path], *, cpu: int | None, talks: bool = False) -> None:
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else subprocess.DEVNULL,
            preexec_fn=_prepared(cpu),
            start_new_session=True,  # Ctrl-C is for the benchmark, which ends its programs itself
        )
        self.name = " ".join(map(str, arguments[:3]))
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and wait until it has ended."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def read_line(self) -> bytes:
        """The next line that it writes, without the line's end. BenchmarkError if none comes."""
        lines = self._pipe(self._process.stdout)
        if not select.select([lines], [], [], _PATIENCE)[0]:
            raise BenchmarkError(f"no answer from {self.name}")
        line: bytes = lines.readline()
        if not line:
            raise BenchmarkError(f"{self.name} has ended")
        return line.rstrip(b"\n")

    def write_line(self, line: bytes) -> None:
        """Tell it something. BenchmarkError if it has ended."""
        pipe = self._pipe(self._process.stdin)
        try:
            pipe.write(line + b"\n")
            pipe.flush()
        except BrokenPipeError as error:
            raise BenchmarkError(f"{self.name} has ended") from error

    def begin(self, order: str, **arguments: Any) -> None:
        """Have it do something; :meth:`finish` gives the answer. BenchmarkError if it has ended."""
        self.write_line(json.dumps({"order": order, **arguments}).encode())

    def finish(self) -> dict[str, Any]:
        """The answer to what was begun. BenchmarkError if it could not be done."""
        answer: dict[str, Any] = json.loads(self.read_line())
        if "error" in answer:
            raise BenchmarkError(f"{self.name}: {answer['error']}")
        return answer

    def order(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something, and wait for the answer. BenchmarkError if it can't."""
        self.begin(order, **arguments)
        return self.finish()

    def running(self) -> bool:
        return self._process.poll() is None

    def _pipe(self, pipe: IO[Any] | None) -> IO[Any]:
        if pipe is None:
            raise TypeError(f"{self.name} was started without pipes")
        return pipe


def python_module(name: str, *arguments: str | Path, cpu: int | None) -> Program:
    """A module of the benchmark as a program that talks by lines."""
    program = Program([sys.executable, "-m", name, *arguments], cpu=cpu, talks=True)
    program.name = name
    return program


def _prepared(cpu: int | None) -> Callable[[], None]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up here: after the fork is too late

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(_DESCRIPTORS, hard), hard))
        if cpu is not None:
            os.sched_setaffinity(0, [cpu])

    return prepare


def children(pid: int) -> list[int]:
    """The child processes that a process has now."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process so far, in user mode and in the kernel, to a tick (10 ms)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = fields[11:13]
    return (int(user) + int(system)) / _TICKS


def memory(pid: int) -> Memory:
    """What a process occupies now (proc_pid_smaps(5))."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        fields[name] = int(value) * 1024
    return Memory(fields["Rss:"], fields["Private_Clean:"] + fields["Private_Dirty:"])


def busy_seconds(cpu: int) -> float:
    """The time for which a CPU has not been idle so far, whatever for; time stolen from it counts."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name == f"cpu{cpu}":
            user, nice, system, _idle, _iowait, interrupts, soft_interrupts, stolen = map(int, values[:8])
            return (user + nice + system + interrupts + soft_interrupts + stolen) / _TICKS
    raise BenchmarkError(f"/proc/stat does not know CPU {cpu}")
