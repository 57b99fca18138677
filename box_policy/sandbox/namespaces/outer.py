"""A box's first process: it makes the namespaces and the network, and outlives the box by a moment.

It is forked from the zygote for one box, and forks the box's pid 1.
"""

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from box_policy.sandbox.launcher import Listeners
from box_policy.sandbox.namespaces import (
    box_init,
    filesystem,
    id_ranges,
    identity,
    limits,
    messages,
    network,
    syscalls,
)
from box_policy.sandbox.namespaces.box_init import Filters
from box_policy.sandbox.namespaces.cgroups import Cgroups
from box_policy.sandbox.namespaces.diagnosis import describe
from box_policy.sandbox.namespaces.filesystem import Workdir
from box_policy.sandbox.namespaces.host_files import EtcFiles
from box_policy.sandbox.namespaces.identity import Identity
from box_policy.sandbox.namespaces.network import NetworkMessages
from box_policy.sandbox.namespaces.user_namespaces import Mapper, NewUserNamespace, map_self

_NAMESPACES = (
    os.CLONE_NEWUSER
    | os.CLONE_NEWNET
    | os.CLONE_NEWNS
    | os.CLONE_NEWPID
    | os.CLONE_NEWIPC
    | os.CLONE_NEWUTS
    | os.CLONE_NEWCGROUP
)


class BoxParts(NamedTuple):
    """What a box is made of, prepared by the zygote."""

    network: NetworkMessages
    etc: EtcFiles
    filters: Filters
    cgroups: Cgroups | None
    cgroup: str
    """The name of the box's groups."""


def run(control: socket.socket, zygote_pid: int, request: dict[str, Any], parts: BoxParts) -> NoReturn:
    """Make the box that ``request`` describes. Every failure is reported on ``control``."""
    try:
        syscalls.set_process_name("box-outer")
        _die_with(zygote_pid)
        own = os.pidfd_open(os.getpid())
        messages.send(control, {"event": "outer"}, [own])
        os.close(own)
        _make_box(control, zygote_pid, request, parts)
        os._exit(0)
    except BaseException as error:
        messages.send_last(control, {"event": "failed", "error": describe(error)})
    finally:
        os._exit(1)


def _die_with(parent: int) -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before it could be watched


def _make_box(control: socket.socket, zygote_pid: int, request: dict[str, Any], parts: BoxParts) -> None:
    # First of all: everything that comes from here on is of these groups, and sees none above them.
    limited = _join_cgroups(request["limits"], parts)
    memory = request["limits"]["memory"] if "memory" in limited else None
    request["scratch_bytes"] = limits.scratch_bytes(request["scratch_bytes"], memory)
    workdir_path: str | None = request["workdir"]
    who, reservation = _identity(writes_host_directory=workdir_path is not None)
    workdir: int | None = None
    mapper: Mapper | None = None
    if who.is_range:
        if workdir_path is not None:
            # An id-mapped mount takes the rights of the host's root, so it is made before they go.
            workdir = _id_mapped_mount(workdir_path, who)
        mapper = Mapper(who)
        with contextlib.suppress(OSError):  # a root that lacks capabilities itself
            # The kernel counts what is in a user namespace as its owner's too: it is to be this box's own
            # user, else all boxes share root's quotas (of inotify instances, pending signals, ...).
            syscalls.be_effectively(who.uid)
        _die_with(zygote_pid)
    try:
        os.unshare(_NAMESPACES)
    except OSError as error:
        error.filename = "unshare"
        raise
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    if workdir_path is not None and workdir is None:
        workdir = Workdir(workdir_path).mount()
    host = filesystem.open_host_files(request["read_only"], parts.etc, workdir, request["rootfs"])
    if mapper is None:
        map_self(who)
    else:
        mapper.map_parent()
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        # The change of user made this process undumpable, and so the /proc files of its children the
        # property of the host's root: the map of U2 could not be written. It also forgot the parent.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
        _die_with(zygote_pid)
    _leave_stdio()
    # Before pid 1 exists: its pivot_root() is felt by every process of this mount namespace.
    families = network.write_settings()
    alive, alive_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive_writer)
        if reservation is not None:
            reservation.close()  # this process's alone
        box_init.run(control, alive, host, who, request, parts.filters)
    os.close(alive)
    host.close()
    # The file system and the network are made at the same time, by two processes.
    _hand_over(control, pid, network.make_network(parts.network, families), limited)
    control.close()
    _wait_for(pid)


def _identity(writes_host_directory: bool) -> tuple[Identity, socket.socket | None]:
    """The box's ids, and what reserves them."""
    return id_ranges.reserve(
        identity.choose_identity(
            os.geteuid(),
            os.getegid(),
            identity.parse_id_map(Path("/proc/self/uid_map").read_text()),
            identity.parse_id_map(Path("/proc/self/gid_map").read_text()),
            writes_host_directory,
        )
    )


def _wait_for(pid: int) -> None:
    while os.waitpid(-1, 0)[0] != pid:
        pass  # a child that wrote id maps


def _id_mapped_mount(path: str, who: Identity) -> int:
    workdir = Workdir(path)
    uid, gid = who.uid + who.box_root, who.gid + who.box_root
    # On disk everything belongs to the directory's owner; in the box, to the box's root. Nobody else
    # is mapped: files of other owners can be read but not written.
    id_map = NewUserNamespace().map(f"{workdir.uid} {uid} 1", f"{workdir.gid} {gid} 1")
    try:
        return workdir.mount(id_map)
    finally:
        os.close(id_map)


def _leave_stdio() -> None:
    # Nothing of a box's keeps the caller's terminal or pipes open.
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _join_cgroups(wanted: dict[str, float], parts: BoxParts) -> dict[str, int]:
    if parts.cgroups is None:
        return {}
    spare = {"pids": wanted["pids"] + box_init.SPARE_PROCESSES} if "pids" in wanted else {}
    return parts.cgroups.join(parts.cgroup, wanted | spare)


def _hand_over(control: socket.socket, init_pid: int, listeners: Listeners, limited: dict[str, int]) -> None:
    init = os.pidfd_open(init_pid)
    fds = [sock.fileno() for sock in (*listeners.tcp, *listeners.dns_udp, *listeners.dns_tcp)]
    messages.send(control, {"event": "network", "cgroups": limited}, [init, *fds])
    listeners.close()
    os.close(init)
