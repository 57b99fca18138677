"""Trying something in a child process that is thrown away afterwards, whatever it did or failed to do.

A trial may enter namespaces, filters and limits that there is no way back from, hang, or be killed by the
kernel: the caller hears of it, in time, and is not touched by it.
"""

import errno
import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

_MOST: Final = 256 * 1024
"""Bytes that a trial may tell."""
_LONGEST_REASON: Final = 300
_PATIENCE_AT_END: Final = 1.0
"""Seconds for a killed process to end. One that sleeps in the kernel may not; it is left behind then."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a trial failed."""

    step: str
    """What it was about."""
    reason: str
    number: int | None = None
    """The errno, if it was a system call that failed."""

    def __str__(self) -> str:
        return f"{self.step}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a trial."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """What it told before it ended."""
    failure: Failure | None = None
    complaint: str = ""
    """The last line on its standard error, or on that of what it started."""


class Trial:
    """The child's side: it says what it does, and what it has found."""

    def __init__(self, writer: int) -> None:
        self._writer = writer

    def step(self, name: str) -> None:
        """What comes next is about this."""
        self._tell({"step": name})

    def tell(self, name: str, value: object) -> None:
        """A fact for the caller; ``value`` as JSON has it."""
        self._tell({"name": name, "value": value})

    def _tell(self, message: dict[str, object]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._writer, data) :]

    def fail(self, error: BaseException) -> None:
        """The end of a trial that raised."""
        if isinstance(error, OSError) and error.errno:
            self._tell({"failure": os.strerror(error.errno), "number": error.errno})
        else:
            self._tell({"failure": (str(error) or type(error).__name__)[:_LONGEST_REASON]})


def attempt(work: Callable[[Trial], None], seconds: float) -> Outcome:
    """Have a child process do ``work``; it is killed after so many seconds. This never raises OSError."""
    deadline = time.monotonic() + seconds
    try:
        reader, writer = os.pipe()
    except OSError as error:
        return Outcome(failure=_could_not_start(error))
    caller = os.getpid()
    complaints = _file_in_memory()
    try:
        pid = os.fork()
    except OSError as error:
        for fd in (reader, writer, complaints):
            os.close(fd)
        return Outcome(failure=_could_not_start(error))
    if pid == 0:
        _be_the_child(work, writer, complaints, caller)
    os.close(writer)
    try:
        data, ended = _read(reader, deadline)
    finally:
        os.close(reader)
        killed_by = _end(pid)
        complaint = _last_line(complaints)
    return replace(_understand(data, None if ended else seconds, killed_by), complaint=complaint)


def _could_not_start(error: OSError) -> Failure:
    return Failure("a process to try it in", os.strerror(error.errno or errno.EIO), error.errno)


def _file_in_memory() -> int:
    try:
        return os.memfd_create("complaints")
    except (OSError, AttributeError):  # no Linux, or hardly one
        return os.open(os.devnull, os.O_RDWR)


def _last_line(file: int) -> str:
    try:
        size = os.fstat(file).st_size
        text = os.pread(file, _LONGEST_REASON, max(0, size - _LONGEST_REASON)).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(file)
    return (text.strip().splitlines() or [""])[-1]


def _be_the_child(work: Callable[[Trial], None], writer: int, complaints: int, caller: int) -> None:
    trial = Trial(writer)
    try:
        os.setsid()
        # What it starts, or its libraries say, is nothing for the caller's terminal.
        null = os.open(os.devnull, os.O_RDWR)
        for fd, target in ((0, null), (1, null), (2, complaints)):
            os.dup2(target, fd)
        _die_with(caller)
        work(trial)
    except BaseException as error:
        try:
            trial.fail(error)
        except OSError:
            pass
    finally:
        # Past every exit handler and buffer that it has inherited.
        os._exit(0)


def _die_with(caller: int) -> None:
    try:
        from box_policy.sandbox.namespaces import syscalls

        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, ImportError, AttributeError):
        return  # no Linux; the time limit remains
    if os.getppid() != caller:
        os._exit(1)


def _read(reader: int, deadline: float) -> tuple[bytes, bool]:
    """All that the child tells, and whether it came to an end in time."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    data = b""
    while len(data) < _MOST:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return data, False
        piece = os.read(reader, 65536)
        if not piece:
            return data, True
        data += piece
    return data, False


def _end(pid: int) -> int | None:
    """Kill what is left of the child and its children; return the signal that ended it, if one did.

    Of one that was ending by itself it is that which ended it: the kernel keeps the first.
    """
    for kill in (os.killpg, os.kill):  # it may not have got as far as to be a group
        try:
            kill(pid, signal.SIGKILL)
        except OSError:
            pass
    deadline = time.monotonic() + _PATIENCE_AT_END
    while (status := _wait(pid)) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    return os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None


def _wait(pid: int) -> int | None:
    """Its exit status; 0 if somebody else has taken that; None while it runs."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return status if ended else None


def _understand(data: bytes, patience: float | None, killed_by: int | None) -> Outcome:
    facts: dict[str, Any] = {}
    step = "start"
    for line in data.splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            break  # cut short by its end
        if "failure" in message:
            return Outcome(facts, Failure(step, message["failure"], message.get("number")))
        if "step" in message:
            step = message["step"]
        else:
            facts[message["name"]] = message["value"]
    if patience is not None:
        return Outcome(facts, Failure(step, f"not done within {patience:g} seconds"))
    if killed_by is not None:
        return Outcome(facts, Failure(step, f"killed by {signal.Signals(killed_by).name}"))
    return Outcome(facts)
