"""pid 1 of a box: makes its file system, starts its programs, reaps, and ends the box when told.

It answers to one control socket. End of file there, or the end of its parent, ends the box: the
kernel then kills every process of the pid namespace.
"""

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import termios
from dataclasses import dataclass
from typing import Any, NoReturn

from box_policy.sandbox.namespaces import messages, network, syscalls, workload
from box_policy.sandbox.namespaces.diagnosis import describe
from box_policy.sandbox.namespaces.filesystem import HostFiles, RootBuilder
from box_policy.sandbox.namespaces.host_files import own_etc_files
from box_policy.sandbox.namespaces.identity import Identity
from box_policy.sandbox.namespaces.user_namespaces import NewUserNamespace, write

# Limits of U1: U2 is the only user namespace there will ever be below it, and nothing in it makes a
# namespace of any other kind.
_LIMITS = {"user": 1} | dict.fromkeys(("cgroup", "ipc", "mnt", "net", "pid", "time", "uts"), 0)
# When memory runs out, a box goes before the programs of the host (choom(1); the range ends at 1000).
_OOM_SCORE_ADJUSTMENT = 500
_REPORT_SIZE = 4096


def run(
    control: socket.socket,
    alive: int,
    host: HostFiles,
    who: Identity,
    request: dict[str, Any],
    seccomp: bytes,
) -> NoReturn:
    """Be pid 1 of the box. ``alive`` is a pipe that only the parent holds the other end of."""
    try:
        # Together with ``alive``: this acts whatever pid 1 is doing, that one even if the parent died
        # before this line.
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.set_process_name("box-init")
        os.umask(0o022)
        user_namespace = _make_box(host, who, request)
        # No program of the box may trace this process or see what it has open.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        _Init(control, alive, user_namespace, seccomp).serve()
    except BaseException as error:
        messages.send_last(control, {"event": "failed", "error": describe(error)})
    finally:
        os._exit(1)


def _make_box(host: HostFiles, who: Identity, request: dict[str, Any]) -> int:
    """Make everything but the network; return a descriptor of U2."""
    new_user_namespace = NewUserNamespace()
    hostname: str = request["hostname"]
    own_files = own_etc_files(hostname, network.ADDRESS_4, network.NAMESERVER)
    root = RootBuilder(host, own_files, who.box_root, request["scratch_bytes"])
    root.build()
    user_namespace = new_user_namespace.map(who.inner_map, who.inner_map, root.proc)
    # By the host's /proc, which is still mounted: the limits are those of the writer's namespace.
    for kind, limit in _LIMITS.items():
        with contextlib.suppress(FileNotFoundError):  # a kind that this kernel does not have
            write(f"/proc/sys/user/max_{kind}_namespaces", str(limit))
    write(f"{root.proc}/self/oom_score_adj", str(_OOM_SCORE_ADJUSTMENT))
    socket.sethostname(hostname)
    root.enter()
    return user_namespace


@dataclass(slots=True)
class _Starting:
    """A child that has not reached exec() yet: its report pipe closes when it has."""

    id: int
    pid: int
    master: int | None
    """The controlling side of its terminal, to be handed out."""
    status: int | None = None
    """Its exit status, if it ended before its report was read."""


class _Init:
    """The event loop of pid 1."""

    def __init__(self, control: socket.socket, alive: int, user_namespace: int, seccomp: bytes) -> None:
        self._control = control
        self._alive = alive
        self._user_namespace = user_namespace
        self._seccomp = seccomp
        self._starting: dict[int, _Starting] = {}  # by report pipe
        self._programs: dict[int, int] = {}  # id of each running program, by pid
        self._wakeup, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._poll = select.poll()
        for fd in (control.fileno(), alive, self._wakeup):
            self._poll.register(fd, select.POLLIN)

    def serve(self) -> NoReturn:
        """Serve until the box is to end."""
        self._reap()  # who made the user namespace ended before anyone listened
        messages.send(self._control, {"event": "ready"})
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._alive:
                    os._exit(0)
                elif fd == self._wakeup:
                    os.read(self._wakeup, 4096)
                    self._reap()
                elif fd in self._starting:
                    self._finish_start(fd)
                else:
                    self._take_request()

    def _take_request(self) -> None:
        received = messages.receive(self._control)
        if received is None:
            os._exit(0)
        request, fds = received
        try:
            if request["op"] == "start":
                self._start(request, fds)
            else:
                self._signal(request["id"], request["number"])
        finally:
            messages.close_all(fds)

    def _signal(self, program: int, number: int) -> None:
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
                pid = os.fork()
            except OSError as error:
                self._refuse(
                    request["id"], error.errno or errno.EIO, f"{request['argv'][0]}: {error.strerror}"
                )
                if master is not None:
                    os.close(master)
                return
            if pid == 0:
                workload.run(request, stdio, terminal, writer, self._user_namespace, self._seccomp)
        self._starting[report] = _Starting(request["id"], pid, master)
        self._poll.register(report, select.POLLIN)

    @staticmethod
    def _stdio(
        given: list[bool], fds: list[int], terminal: int | None, stack: contextlib.ExitStack
    ) -> list[int]:
        default = terminal
        if default is None:
            default = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, default)
        remaining = iter(fds)
        return [next(remaining) if is_given else default for is_given in given]

    def _finish_start(self, report: int) -> None:
        refusal = os.read(report, _REPORT_SIZE)
        self._poll.unregister(report)
        os.close(report)
        child = self._starting.pop(report)
        if refusal:
            reason = json.loads(refusal)
            self._refuse(child.id, reason["errno"], reason["error"])
        else:
            handed = [] if child.master is None else [child.master]
            messages.send(self._control, {"event": "started", "id": child.id}, handed)
            if child.status is None:
                self._programs[child.pid] = child.id
            else:
                self._tell_end(child.id, child.status)
        if child.master is not None:
            os.close(child.master)

    def _refuse(self, program: int, number: int, text: str) -> None:
        messages.send(self._control, {"event": "refused", "id": program, "errno": number, "error": text})

    def _tell_end(self, program: int, status: int) -> None:
        messages.send(self._control, {"event": "ended", "id": program, "status": status})

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            program = self._programs.pop(pid, None)
            if program is not None:
                self._tell_end(program, code)
                continue
            for child in self._starting.values():
                if child.pid == pid:
                    child.status = code


def _open_terminal(rows: int, columns: int) -> tuple[int, int]:
    """Both sides of a new pseudo-terminal of the box's own."""
    master, slave = os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return master, slave
