"""What pid 1 of a box does once the box is made: starts its programs, reaps, and ends the box when told.

It answers to one control socket. End of file there ends the box: the kernel then kills every process of
the pid namespace.
"""

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import stat
import struct
import termios
import time
from dataclasses import dataclass
from typing import Any, NoReturn

from box_policy.sandbox.namespaces import messages, workload
from box_policy.sandbox.namespaces.messages import DescriptorsLostError, Message
from box_policy.sandbox.namespaces.pause import Pause
from box_policy.sandbox.namespaces.workload import Rights

# When memory runs out, the programs of a box go first: before its pid 1, and before the programs of the
# host (choom(1); the range ends at 1000). A program may set its own back to 0: the least that it may set is
# what a process with CAP_SYS_RESOURCE on the host has set, and for pid 1 that is 0.
_OOM_SCORE_ADJUSTMENT = 500
_SEND_RETRIES = 1000
_SEND_RETRY = 0.01
_PAUSED = "the box is paused"
_NAME_SIZE = 500
_NULL_DEVICE = os.makedev(1, 3)
"""linux/Documentation/admin-guide/devices.txt"""


@dataclass(slots=True)
class _Starting:
    """A child that has not reached exec() yet: its report pipe closes when it has."""

    id: int
    pid: int
    master: int | None
    """The controlling side of its terminal, to be handed out."""
    status: int | None = None
    """Its exit status, if it ended before its report was read."""


class InitLoop:
    """The event loop of pid 1. Its child processes become programs with these ``rights``."""

    def __init__(self, control: socket.socket, alive: int | None, oom_score: int, rights: Rights) -> None:
        """``alive`` is a pipe whose end ends the box too; ``oom_score`` this process's own oom_score_adj,
        which it could not open any more."""
        self._control = control
        self._alive = alive
        self._oom_score = oom_score
        self._rights = rights
        self._pause = Pause()
        self._starting: dict[int, _Starting] = {}  # by report pipe
        self._programs: dict[int, int] = {}  # id of each running program, by pid
        self._wakeup, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._poll = select.poll()
        for fd in (control.fileno(), alive, self._wakeup):
            if fd is not None:
                self._poll.register(fd, select.POLLIN)

    def serve(self) -> NoReturn:
        """Serve until the box is to end."""
        self._reap()  # what ended before anyone listened
        messages.send(self._control, {"event": "ready"})
        while True:
            for fd, _ in self._poll.poll(self._pause.hold()):
                if fd == self._alive:
                    os._exit(0)
                elif fd == self._wakeup:
                    os.read(self._wakeup, 4096)
                    self._pause.alarm()
                    self._reap()
                elif fd == self._control.fileno():
                    self._take_request()
                elif fd in self._starting:  # it may just have been given up
                    self._finish_start(fd)

    def _take_request(self) -> None:
        try:
            received = messages.receive(self._control)
        except DescriptorsLostError as error:
            self._refuse(error.message["id"], errno.EMFILE, os.strerror(errno.EMFILE))
            return
        if received is None:
            os._exit(0)
        request, fds = received
        try:
            operation = request["op"]
            if operation == "signal":
                self._signal(request["id"], request["number"])
            elif operation == "pause":
                self._pause.begin()
                self._refuse_starts()
                self._tell_done(request["id"])
            elif operation == "resume":
                self._pause.end()
                self._tell_done(request["id"])
            elif self._pause.is_on:
                self._refuse(request["id"], errno.EAGAIN, _PAUSED)
            else:
                self._start(request, fds)
        finally:
            messages.close_all(fds)

    def _refuse_starts(self) -> None:
        """Refuse the starts under way, whose children have been stopped before they ran their program."""
        for report, child in tuple(self._starting.items()):
            self._finish_start(report) if _can_be_read(report) else self._give_up(report, child)

    def _give_up(self, report: int, child: _Starting) -> None:
        # Should it have reached exec() just now: it is stopped, and ends before it does anything.
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        self._forget_start(report)
        self._refuse(child.id, errno.EAGAIN, _PAUSED)
        if child.master is not None:
            os.close(child.master)

    def _forget_start(self, report: int) -> _Starting:
        self._poll.unregister(report)
        os.close(report)
        return self._starting.pop(report)

    def _signal(self, program: int, number: int) -> None:
        if self._pause.is_on and number == signal.SIGCONT:
            return  # resuming does it
        for pid, running in self._programs.items():
            if running == program:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, number)

    def _start(self, request: dict[str, Any], fds: list[int]) -> None:
        master: int | None = None
        with contextlib.ExitStack() as stack:
            try:
                terminal: int | None = None
                if request["terminal"] is not None:
                    master, terminal = _open_terminal(*request["terminal"])
                    stack.callback(os.close, terminal)
                stdio = self._stdio(request["stdio"], fds, terminal, stack)
                report, writer = os.pipe()
                stack.callback(os.close, writer)
                try:
                    pid = self._fork()
                except OSError:
                    os.close(report)
                    raise
            except OSError as error:
                what = request["argv"][0][:_NAME_SIZE] if "argv" in request else "an operation on files"
                self._refuse(request["id"], error.errno or errno.EIO, f"{what}: {error.strerror}")
                if master is not None:
                    os.close(master)
                return
            if pid == 0:
                workload.run(request, stdio, terminal, writer, self._rights)
        self._starting[report] = _Starting(request["id"], pid, master)
        self._poll.register(report, select.POLLIN)

    def _fork(self) -> int:
        # A child can't change its score before exec(): as a process that must not be traced, it may not
        # open what is its own in /proc.
        os.write(self._oom_score, str(_OOM_SCORE_ADJUSTMENT).encode())
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid != 0:
                os.write(self._oom_score, b"0")
        return pid

    @staticmethod
    def _stdio(
        given: list[bool], fds: list[int], terminal: int | None, stack: contextlib.ExitStack
    ) -> list[int]:
        default = terminal
        if default is None:
            default = _open_null()
            stack.callback(os.close, default)
        remaining = iter(fds)
        return [next(remaining) if is_given else default for is_given in given]

    def _finish_start(self, report: int) -> None:
        refusal = os.read(report, select.PIPE_BUF)
        child = self._forget_start(report)
        if refusal:
            self._refuse(child.id, *_reason(refusal))
        else:
            self._tell_started(child)
        if child.master is not None:
            os.close(child.master)

    def _tell_started(self, child: _Starting) -> None:
        handed = [] if child.master is None else [child.master]
        message = {"event": "started", "id": child.id, "pid": child.pid, "terminal": bool(handed)}
        try:
            messages.send(self._control, message, handed)
        except OSError as error:
            # What is in flight is limited, and the host's other processes may have all of it.
            if child.status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            self._refuse(child.id, error.errno or errno.EIO, f"can't be handed out: {error.strerror}")
            return
        if child.status is None:
            self._programs[child.pid] = child.id
        else:
            self._tell_end(child.id, child.status)

    def _refuse(self, program: int, number: int, text: str) -> None:
        answer = {"event": "refused", "id": program, "errno": number, "error": text}
        self._tell(answer | {"paused": self._pause.is_on})

    def _tell_done(self, order: int) -> None:
        self._tell({"event": "done", "id": order, "paused": self._pause.is_on})

    def _tell_end(self, program: int, status: int) -> None:
        self._tell({"event": "ended", "id": program, "status": status})

    def _tell(self, message: Message) -> None:
        # Whoever waits for it would wait for ever; the kernel's want of memory passes.
        for _ in range(_SEND_RETRIES):
            try:
                messages.send(self._control, message)
                return
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.ENOMEM):
                    raise
                time.sleep(_SEND_RETRY)
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if os.WIFSTOPPED(status):
                continue  # told to a tracer alone, and it was the program that made this process one
            code = os.waitstatus_to_exitcode(status)
            program = self._programs.pop(pid, None)
            if program is not None:
                self._tell_end(program, code)
                continue
            for child in self._starting.values():
                if child.pid == pid:
                    child.status = code


def _reason(refusal: bytes) -> tuple[int, str]:
    """What a child says of why it can't become the program."""
    try:
        reason = json.loads(refusal)
        return int(reason["errno"]), str(reason["error"])
    except (ValueError, TypeError, KeyError):
        return errno.EIO, os.strerror(errno.EIO)


def _open_null() -> int:
    """The null device. OSError if something else is in its place.

    A program that may write to /dev could put a link there: to /proc/self/mem, which is this process's.
    """
    fd = os.open("/dev/null", os.O_RDWR | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _NULL_DEVICE:
        os.close(fd)
        raise OSError(errno.ENODEV, "what is at /dev/null is another file")
    os.set_blocking(fd, True)
    return fd


def _can_be_read(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _open_terminal(rows: int, columns: int) -> tuple[int, int]:
    """Both sides of a new pseudo-terminal of the box's own."""
    master, slave = os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return master, slave
