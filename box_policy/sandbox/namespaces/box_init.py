"""pid 1 of a box: makes its file system, starts its programs, reaps, and ends the box when told.

It answers to one control socket. End of file there, or the end of its parent, ends the box: the
kernel then kills every process of the pid namespace.
"""

import errno
import fcntl
import os
import select
import signal
import socket
import struct
import termios
from dataclasses import dataclass, field
from typing import Any, NoReturn

from box_policy.sandbox.namespaces import messages, network, outer, syscalls, workload
from box_policy.sandbox.namespaces.filesystem import HostFiles, RootBuilder
from box_policy.sandbox.namespaces.host_files import own_etc_files
from box_policy.sandbox.namespaces.identity import Identity

# Limits of U1: U2 is the only user namespace there will ever be below it, and nothing in it may
# make a namespace of any other kind.
_LIMITS = {"user": 1} | dict.fromkeys(("cgroup", "ipc", "mnt", "net", "pid", "time", "uts"), 0)


def run(
    control: socket.socket, alive: int, host: HostFiles, who: Identity, request: dict[str, Any], seccomp: bytes
) -> NoReturn:
    """Be pid 1 of the box. ``alive`` is a pipe that only the parent holds the other end of."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.set_process_name("box-init")
        os.umask(0o022)
        own_files = own_etc_files(request["hostname"], network.ADDRESS_4, network.NAMESERVER)
        root = RootBuilder(host, own_files, who.box_root, request["scratch_bytes"])
        root.build()
        user_namespace = outer.new_user_namespace(who.inner_map, who.inner_map, root.proc)
        for kind, limit in _LIMITS.items():
            _limit(kind, limit)
        socket.sethostname(request["hostname"])
        root.enter()
        # No program of the box may trace this process or open what it has open.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        _Init(control, alive, user_namespace, who.is_range, seccomp).serve()
    except BaseException as error:  # noqa: BLE001  # this process has nobody else to tell
        text = outer.explain(error) if isinstance(error, OSError) else f"internal error: {error!r}"
        try:
            messages.send(control, {"event": "failed", "error": text})
        except OSError:
            pass
    os._exit(1)


def _limit(kind: str, value: int) -> None:
    try:
        fd = os.open(f"/proc/sys/user/max_{kind}_namespaces", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # a kind that this kernel does not have
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


@dataclass(slots=True)
class _Starting:
    """A child that has not reached its exec() yet; its report pipe closes when it has."""

    id: int
    pid: int
    master: int | None
    report: bytearray = field(default_factory=bytearray)


class _Init:
    """The event loop of pid 1."""

    def __init__(
        self, control: socket.socket, alive: int, user_namespace: int, set_groups: bool, seccomp: bytes
    ) -> None:
        self._control = control
        self._user_namespace = user_namespace
        self._set_groups = set_groups
        self._seccomp = seccomp
        self._programs: dict[int, int] = {}  # pid -> id, of those that run
        self._starting: dict[int, _Starting] = {}  # report pipe -> what it is about
        self._ended: dict[int, int] = {}  # pid -> status, of those that ended before their report was read
        self._alive = alive
        self._poll = select.poll()
        self._wakeup, wakeup = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for fd in (control.fileno(), alive, self._wakeup):
            self._poll.register(fd, select.POLLIN)

    def serve(self) -> NoReturn:
        """Serve until the box is to end."""
        messages.send(self._control, {"event": "ready"})
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._alive:
                    os._exit(0)
                elif fd == self._wakeup:
                    os.read(self._wakeup, 4096)
                    self._reap()
                elif fd in self._starting:
                    self._read_report(fd)
                else:
                    self._take_request()

    def _take_request(self) -> None:
        received = messages.receive(self._control)
        if received is None:
            os._exit(0)
        request, fds = received
        if request["op"] == "start":
            self._start(request, fds)
        elif request["op"] == "signal":
            self._signal(request["id"], request["signal"])
        messages.close_all(fds)

    def _signal(self, program: int, number: int) -> None:
        for pid, running in self._programs.items():
            if running == program:
                try:
                    os.killpg(pid, number)
                except OSError:
                    pass  # its whole group has ended

    def _start(self, request: dict[str, Any], fds: list[int]) -> None:
        master: int | None = None
        slave: int | None = None
        opened: list[int] = []
        try:
            if request["terminal"] is not None:
                master, slave = _open_terminal(*request["terminal"])
                opened.append(slave)
            given = iter(fds)
            stdio = [next(given) if use else slave for use in request["stdio"]]
            if None in stdio:
                null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
                opened.append(null)
                stdio = [null if fd is None else fd for fd in stdio]
            report, report_writer = os.pipe()
            opened.append(report_writer)
            pid = os.fork()
        except OSError as error:
            text = f"{error.strerror} while starting the program"
            self._reply({"event": "refused", "id": request["id"], "errno": error.errno, "error": text})
            if master is not None:
                os.close(master)
            return
        finally:
            if "pid" not in locals() or pid:
                messages.close_all(opened)
        if pid == 0:
            workload.run(
                request,
                [fd for fd in stdio if fd is not None],
                slave,
                report_writer,
                self._user_namespace,
                self._set_groups,
                self._seccomp,
            )
        os.set_blocking(report, False)
        self._starting[report] = _Starting(request["id"], pid, master)
        self._poll.register(report, select.POLLIN)
