"""pid 1 of a box's container: makes the directories of the box, and serves.

It runs with the interpreter of ``runtime``, and takes nothing from the image but its users. It connects to
the launcher's socket, is told what the box is, and ends with that connection. There is no way back to it:
the launcher accepts one.
"""

import os
import signal
import socket
import stat
from typing import Any, NoReturn

from box_policy.sandbox.docker import users
from box_policy.sandbox.docker.paths import SOCKET, SOCKET_DIRECTORY
from box_policy.sandbox.docker.users import Account
from box_policy.sandbox.launcher import SandboxError
from box_policy.sandbox.namespaces import messages, syscalls
from box_policy.sandbox.namespaces.filesystem import WORKSPACE
from box_policy.sandbox.namespaces.init_loop import InitLoop
from box_policy.sandbox.namespaces.workload import PATH, Rights

_MODE = 0o755


def main() -> NoReturn:
    """Be pid 1 of the box."""
    control = connect()
    try:
        # As pid 1 it gets no signal that it has no handler for; Python has one for this.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        syscalls.set_process_name("box-init")
        syscalls.set_command_line("box")
        os.umask(0o022)
        received = messages.receive(control)
        if received is None:
            os._exit(0)
        request, _ = received
        # The network is made from outside, in the namespace that this leads to.
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        messages.send(control, {"event": "network"}, [namespace])
        os.close(namespace)
        account = users.find_account(
            request["user"], users.read_table("/etc/passwd"), users.read_table("/etc/group")
        )
        _make_directories(account, request)
        oom_score = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        # No program of the box may trace this process or see what it has open.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        # Nor is one to gain much that nevertheless takes it.
        syscalls.install_seccomp_filter(bytes.fromhex(request["filters"][0]))
        rights = Rights(
            account.become, None, bytes.fromhex(request["filters"][1]), None, _environment(account, request)
        )
        InitLoop(control, None, oom_score, rights).serve()
    except SandboxError as error:
        messages.send_last(control, {"event": "failed", "error": str(error)})
    except BaseException as error:
        messages.send_last(control, {"event": "failed", "error": f"the box can't be made: {error!r}"})
    finally:
        os._exit(1)


def connect() -> socket.socket:
    """The connection to the launcher. OSError if it is not there any more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(f"{SOCKET_DIRECTORY}/{SOCKET}")
    return sock


def _environment(account: Account, request: dict[str, Any]) -> dict[str, str]:
    own: dict[str, str] = request["env"]
    return {"PATH": PATH, "HOME": account.home, "USER": account.name, "LANG": "C.UTF-8"} | own


def _make_directories(account: Account, request: dict[str, Any]) -> None:
    if request["makes_workspace"]:
        _make(WORKSPACE, account)
        os.chown(WORKSPACE, account.uid, account.gid, follow_symlinks=False)
    for path in request["directories"]:
        _make(path, account)


def _make(path: str, account: Account) -> None:
    """Make a directory of that user's, and those above it, where there is none."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise SandboxError(f"the image has no directory at {path}, but something else")
    except FileNotFoundError:
        _make(os.path.dirname(path), account)  # noqa: PTH120
        os.mkdir(path, _MODE)  # noqa: PTH102
        os.chown(path, account.uid, account.gid, follow_symlinks=False)
