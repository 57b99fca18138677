"""A box's first process: it makes the namespaces and the network, and outlives the box by a moment.

It is forked from the zygote for one box. Its children are pid 1 of the box, and, where the id maps
must be written from outside the user namespace, one that stays outside to do so.
"""

import errno
import os
import signal
import socket
from pathlib import Path
from typing import Any, NoReturn

from box_policy.sandbox.launcher import SandboxError
from box_policy.sandbox.namespaces import box_init, filesystem, identity, messages, network, syscalls
from box_policy.sandbox.namespaces.host_files import EtcFiles
from box_policy.sandbox.namespaces.identity import Identity

_NAMESPACES = (
    os.CLONE_NEWUSER
    | os.CLONE_NEWNET
    | os.CLONE_NEWNS
    | os.CLONE_NEWPID
    | os.CLONE_NEWIPC
    | os.CLONE_NEWUTS
    | os.CLONE_NEWCGROUP
)


def run(control: socket.socket, zygote_pid: int, request: dict[str, Any], etc: EtcFiles, seccomp: bytes) -> NoReturn:
    """Make the box that ``request`` describes. Every failure is reported on ``control``."""
    try:
        _die_with(zygote_pid)
        syscalls.set_process_name("box-outer")
        _make_box(control, request, etc, seccomp)
    except SandboxError as error:
        _report(control, str(error))
    except OSError as error:
        _report(control, explain(error))
    except BaseException as error:  # noqa: BLE001  # this process has nobody else to tell
        _report(control, f"internal error: {error!r}")
    os._exit(1)


def _report(control: socket.socket, text: str) -> None:
    try:
        messages.send(control, {"event": "failed", "error": text})
    except OSError:
        pass  # the caller is gone, and so will be the box


def _die_with(parent: int) -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _make_box(control: socket.socket, request: dict[str, Any], etc: EtcFiles, seccomp: bytes) -> None:
    workdir_path: str | None = request["workdir"]
    who = identity.choose_identity(
        os.geteuid(),
        os.getegid(),
        identity.parse_id_map(Path("/proc/self/uid_map").read_text()),
        identity.parse_id_map(Path("/proc/self/gid_map").read_text()),
        writes_host_directory=workdir_path is not None,
    )
    workdir: int | None = None
    if workdir_path is not None and who.is_range:
        # An id-mapped mount can only be made with the rights of the host's root, so before those go.
        workdir = _id_mapped_workdir(workdir_path, who)
    mapper = _Mapper(who) if who.is_range else None
    os.unshare(_NAMESPACES)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    if workdir_path is not None and workdir is None:
        workdir = filesystem.open_workdir(workdir_path, None)
    host = filesystem.open_host_files(request["read_only"], etc, workdir)
    if mapper is not None:
        mapper.write()
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        # The change of user made this process undumpable, and with it the /proc files of its children
        # the host's root's: the map of U2 could not be written.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
    else:
        _map_self(who)
    _quieten()
    alive, kept = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(kept)
        box_init.run(control, alive, host, who, request, seccomp)
    os.close(alive)
    _make_network(control, pid)
    control.close()
    for mount in [opened.mount for opened in (*host.trees, *host.files)] + ([workdir] if workdir is not None else []):
        os.close(mount)
    os.waitpid(pid, 0)
    os._exit(0)


def _id_mapped_workdir(path: str, who: Identity) -> int:
    try:
        owner = os.stat(path)
    except OSError as error:
        raise SandboxError(f"work directory {path}: {error.strerror}") from None
    box_root = who.box_root
    user_namespace = new_user_namespace(
        f"{owner.st_uid} {who.uid + box_root} 1", f"{owner.st_gid} {who.gid + box_root} 1", "/proc"
    )
    try:
        return filesystem.open_workdir(path, user_namespace)
    finally:
        os.close(user_namespace)


def _make_network(control: socket.socket, init_pid: int) -> None:
    listeners = network.make_network()
    # pid 1's end is the end of every process in the box; this process's, of all its namespaces.
    lives = [os.pidfd_open(init_pid), os.pidfd_open(os.getpid())]
    fds = [sock.fileno() for sock in (*listeners.tcp, *listeners.dns_udp, *listeners.dns_tcp)]
    messages.send(control, {"event": "network", "families": len(listeners.tcp)}, [*lives, *fds])
    listeners.close()
    messages.close_all(lives)


def _quieten() -> None:
    # Nothing of a box's keeps the caller's terminal or pipes open.
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _map_self(who: Identity) -> None:
    uid_map, gid_map = who.outer_maps
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", uid_map)
    _write("/proc/self/gid_map", gid_map)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


class _Mapper:
    """A child that keeps the rights of the parent's first user namespace, and writes its id maps."""

    def __init__(self, who: Identity) -> None:
        reader, self._go = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._go)
                target = os.getppid()
                if os.read(reader, 1):
                    for kind, text in zip("ug", who.outer_maps, strict=True):
                        _write(f"/proc/{target}/{kind}id_map", text)
                os._exit(0)
            except OSError as error:
                os._exit(error.errno or errno.EIO)
            finally:
                os._exit(1)
        os.close(reader)

    def write(self) -> None:
        """Have the maps written, now that this process is in the new user namespace."""
        os.write(self._go, b".")
        os.close(self._go)
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code:
            raise OSError(abs(code), os.strerror(abs(code)), "uid_map")


def new_user_namespace(uid_map: str, gid_map: str, proc: str) -> int:
    """A descriptor of a new user namespace, a child of this process's, with these maps."""
    ready_reader, ready = os.pipe()
    done, done_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(done_writer)
            os.unshare(os.CLONE_NEWUSER)
            os.write(ready, b".")
            os.read(done, 1)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or errno.EIO)
        finally:
            os._exit(1)
    try:
        os.close(ready)
        if os.read(ready_reader, 1):
            _write(f"{proc}/{pid}/uid_map", uid_map)
            _write(f"{proc}/{pid}/gid_map", gid_map)
            return os.open(f"{proc}/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for fd in (ready_reader, done, done_writer):
            os.close(fd)
        _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    raise OSError(abs(code), os.strerror(abs(code)), "user namespace")


def explain(error: OSError) -> str:
    """One line on why this machine can't make a box: what, where, and what to do about it."""
    what = error.filename if isinstance(error.filename, str) else error.strerror
    reason = os.strerror(error.errno) if error.errno else str(error)
    if what == "nf_tables":
        return (
            f"the kernel refused the firewall rules of the box's network namespace ({reason});"
            " load the modules nf_tables, nft_redir, nft_fib_inet, nft_reject_inet and nf_nat"
            " (modprobe, or CONFIG_NF_TABLES in the kernel)"
        )
    for path, bad, remedy in _SWITCHES:
        try:
            if Path(path).read_text().strip() == bad:
                return f"user namespaces are switched off on this machine ({path} is {bad}); {remedy}"
        except OSError:
            continue
    if error.errno in (errno.EPERM, errno.EACCES):
        return (
            f"this machine doesn't permit what a box needs ({what}: {reason}); in a container, allow"
            " user namespaces: with Docker, --security-opt seccomp=unconfined --security-opt"
            " systempaths=unconfined --security-opt apparmor=unconfined"
        )
    return f"the box could not be made: {what}: {reason}"


_SWITCHES = (
    ("/proc/sys/user/max_user_namespaces", "0", "as root: sysctl user.max_user_namespaces=15000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "as root: sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or give this Python an AppArmor"
        " profile that allows userns",
    ),
)
