"""pid 1 of a box of namespaces: makes its file system and the user namespace of its programs, and serves.

The end of its parent ends it too, and with it the box.
"""

import os
import resource
import signal
import socket
from typing import Any, NamedTuple, NoReturn

from box_policy.sandbox.launcher import SandboxError
from box_policy.sandbox.namespaces import messages, network, syscalls, user_namespaces
from box_policy.sandbox.namespaces.diagnosis import describe
from box_policy.sandbox.namespaces.filesystem import HOME, HostFiles, RootBuilder
from box_policy.sandbox.namespaces.host_files import own_etc_files
from box_policy.sandbox.namespaces.identity import Identity
from box_policy.sandbox.namespaces.init_loop import InitLoop
from box_policy.sandbox.namespaces.user_namespaces import NewUserNamespace
from box_policy.sandbox.namespaces.workload import PATH, Rights

SPARE_PROCESSES = 16
"""How many more than its programs may be there at one time: what makes a box, and the file workers."""
_ENVIRONMENT = {"PATH": PATH, "HOME": HOME, "USER": "root", "LANG": "C.UTF-8"}


class Filters(NamedTuple):
    """System call filters, as ``seccomp`` assembles them."""

    init: bytes
    """Of pid 1 itself."""
    box: bytes
    """Of the programs."""


def run(
    control: socket.socket,
    alive: int,
    host: HostFiles,
    who: Identity,
    request: dict[str, Any],
    filters: Filters,
) -> NoReturn:
    """Be pid 1 of the box. ``alive`` is a pipe that only the parent holds the other end of."""
    try:
        # Together with ``alive``: this acts whatever pid 1 is doing, that one even if the parent died
        # before this line.
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.set_process_name("box-init")
        os.umask(0o022)
        user_namespace, oom_score = _make_box(host, who, request)
        # No program of the box may trace this process or see what it has open.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        # Nor is one to gain much that nevertheless takes it.
        syscalls.install_seccomp_filter(filters.init)
        pids: int | None = request["limits"].get("pids")
        rights = Rights(lambda: _enter(user_namespace), user_namespace, filters.box, pids, _ENVIRONMENT)
        InitLoop(control, alive, oom_score, rights).serve()
    except BaseException as error:
        messages.send_last(control, {"event": "failed", "error": describe(error)})
    finally:
        os._exit(1)


def _enter(user_namespace: int) -> None:
    """Become root of U2, with the capabilities that this has in it."""
    os.setns(user_namespace, os.CLONE_NEWUSER)
    os.close(user_namespace)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _make_box(host: HostFiles, who: Identity, request: dict[str, Any]) -> tuple[int, int]:
    """Make everything but the network; return descriptors of U2 and of this process's oom_score_adj."""
    pids: int | None = request["limits"].get("pids")
    new_user_namespace = NewUserNamespace() if pids is None else _bounded_user_namespace(pids)
    hostname: str = request["hostname"]
    own_files = own_etc_files(hostname, network.ADDRESS_4, network.NAMESERVER)
    root = RootBuilder(host, own_files, who.box_root, request["scratch_bytes"], request["directories"])
    root.build()
    user_namespace = new_user_namespace.map(who.inner_map, who.inner_map, root.proc)
    user_namespaces.limit_descendants()
    oom_score = os.open(f"{root.proc}/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    socket.sethostname(hostname)
    root.enter()
    if request["rootfs"] is not None and not os.access("/bin/sh", os.X_OK):
        raise SandboxError(f"{request['rootfs']} is no root of a Linux system: there is no /bin/sh in it")
    return user_namespace, oom_score


def _bounded_user_namespace(pids: int) -> NewUserNamespace:
    """U2 with room for so many processes, of all its users together.

    The kernel takes the bound from RLIMIT_NPROC of whoever makes a user namespace, and holds everything
    in it to that. RLIMIT_NPROC of a program alone would bound each user of the box by itself.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    limit = pids + SPARE_PROCESSES
    resource.setrlimit(resource.RLIMIT_NPROC, (limit if hard < 0 else min(limit, hard), hard))
    try:
        return NewUserNamespace()
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
