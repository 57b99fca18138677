"""What /proc says of the processes that its pid namespace has."""

# Paths are strings here, as system calls take them.
# ruff: noqa: PTH208

import os
from collections.abc import Iterator
from dataclasses import dataclass

STOPPED = "T"
_AT_REST = frozenset("TtZXxID")  # D: waits for what can't be interrupted, such as a stopped child's exec()


@dataclass(frozen=True, slots=True)
class Process:
    """A process, or a thread of one."""

    pid: int
    state: str
    """One letter, proc_pid_stat(5)."""
    parent: int
    started: int
    """In ticks since the machine's start. Tells it from a later one with the same number."""

    @property
    def is_at_rest(self) -> bool:
        """Whether it executes nothing now."""
        return self.state in _AT_REST


def parse(stat: bytes) -> Process | None:
    """From the text of /proc/<pid>/stat; None if it is none."""
    head, _, tail = stat.rpartition(b")")  # a program's name may hold anything
    fields = tail.split()
    try:
        pid = int(head.split(b" ", 1)[0])
        return Process(pid, fields[0].decode("ascii"), int(fields[1]), int(fields[19]))
    except (IndexError, ValueError):
        return None


def everyone(proc: str = "/proc") -> Iterator[Process]:
    """All processes."""
    return _read(proc)


def threads(pid: int, proc: str = "/proc") -> Iterator[Process]:
    """All threads of a process."""
    return _read(f"{proc}/{pid}/task")


def _read(directory: str) -> Iterator[Process]:
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, ProcessLookupError):
        return
    for name in names:
        if name.isdigit():
            try:
                fd = os.open(f"{directory}/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    process = parse(os.read(fd, 4096))
                finally:
                    os.close(fd)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
            if process is not None:
                yield process
