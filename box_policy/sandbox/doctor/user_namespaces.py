"""Whether this user may make the namespaces that boxes are made of, and if not, what forbids it."""

import errno
import os
import sys
from pathlib import Path
from typing import Final

from box_policy.sandbox.doctor.findings import Finding, Remedy
from box_policy.sandbox.doctor.host import Host, read
from box_policy.sandbox.doctor.remedies import (
    apparmor_profile,
    container_options,
    let_user_namespaces_be,
    on_the_host,
    whole_proc,
)
from box_policy.sandbox.doctor.trial import Failure, Trial, attempt

_SECONDS: Final = 5.0
_CLONE = "/proc/sys/kernel/unprivileged_userns_clone"
_APPARMOR = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
_LIMITS: Final = {
    "user": "user namespace",
    "mnt": "mount namespace",
    "net": "network namespace",
    "pid": "pid namespace",
    "ipc": "IPC namespace",
    "uts": "host name namespace",
    "cgroup": "control group namespace",
}
_OF_USERS: Final = (_LIMITS["user"], "id map")
_MOUNT_OF_PROC: Final = "mount of /proc"
_REFUSED: Final = (errno.EPERM, errno.EACCES)
_MANY: Final = "15000"


def enter_user_namespace(trial: Trial) -> None:
    """Make this process root of a user namespace with nobody else in it, as a user's box has one."""
    from box_policy.sandbox.namespaces.identity import Identity
    from box_policy.sandbox.namespaces.user_namespaces import map_self

    who = Identity(os.geteuid(), os.getegid(), 1)
    trial.step(_LIMITS["user"])
    os.unshare(os.CLONE_NEWUSER)
    trial.step("id map")
    map_self(who)


def check_user_namespaces(host: Host) -> list[Finding]:
    """User namespaces, and those of the other kinds in them."""
    outcome = attempt(_make_namespaces, _SECONDS)
    failure = outcome.failure
    user, others = "user namespaces", "namespaces"
    if failure is None:
        return [
            Finding(user, "ok", "can be made"),
            Finding(others, "ok", "mount, network, pid, IPC, host name, control group; mounts in them"),
        ]
    if failure.step in _OF_USERS or not outcome.facts.get("user"):
        return [_refused(user, host, failure)]
    return [Finding(user, "ok", "can be made"), _refused(others, host, failure)]


def _make_namespaces(trial: Trial) -> None:
    from box_policy.sandbox.namespaces import syscalls

    enter_user_namespace(trial)
    trial.tell("user", True)
    for kind, flag in (
        ("mnt", os.CLONE_NEWNS),
        ("net", os.CLONE_NEWNET),
        ("ipc", os.CLONE_NEWIPC),
        ("uts", os.CLONE_NEWUTS),
        ("cgroup", os.CLONE_NEWCGROUP),
        ("pid", os.CLONE_NEWPID),
    ):
        trial.step(_LIMITS[kind])
        os.unshare(flag)
    trial.step("mounts")
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    # /proc is that of a pid namespace only for a process in it.
    child = os.fork()
    if child == 0:
        try:
            trial.step(_MOUNT_OF_PROC)
            syscalls.mount("proc", "/proc", "proc", 0)
            trial.step("mount of a tmpfs")
            syscalls.mount("none", "/proc", "tmpfs", 0)
        except BaseException as error:
            trial.fail(error)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def _refused(name: str, host: Host, failure: Failure) -> Finding:
    limit = _used_up(failure)
    if limit is not None:
        setting, value = limit
        found = f"{failure}; {setting} is {value}"
        return Finding(name, "missing", found, (let_user_namespaces_be(host, setting, _MANY),))
    if failure.number in (errno.EINVAL, errno.ENOSYS):
        return Finding(name, "missing", f"{failure}; this kernel is built without them", (_other_kernel(),))
    if failure.number not in _REFUSED:
        return Finding(name, "missing", str(failure))
    if failure.step == _MOUNT_OF_PROC:
        found = f"{failure}; something is mounted over parts of the /proc here"
        return Finding(name, "missing", found, whole_proc(host))
    reason, remedies = _refusal(name, host)
    return Finding(name, "missing", f"{failure}; {reason}" if reason else str(failure), remedies)


def _used_up(failure: Failure) -> tuple[str, str] | None:
    """The limit that stands in the way, user.max_*_namespaces, and its value."""
    if failure.number != errno.ENOSPC:
        return None
    for kind, step in _LIMITS.items():
        value = read(f"/proc/sys/user/max_{kind}_namespaces")
        if step == failure.step and value is not None:
            return f"user.max_{kind}_namespaces", value
    return None


def _refusal(name: str, host: Host) -> tuple[str, tuple[Remedy, ...]]:
    """Who says no, and what to do about it: the first that is found."""
    if not host.is_root and read(_CLONE) == "0":
        setting = "kernel.unprivileged_userns_clone"
        return f"{setting} is 0", (let_user_namespaces_be(host, setting, "1"),)
    if not host.is_root and read(_APPARMOR) == "1":
        reason = "AppArmor restricts them (kernel.apparmor_restrict_unprivileged_userns is 1)"
        if host.container:
            where = Remedy(f"This is set{on_the_host(host)}.")
            return reason, (*container_options(host), where)
        return reason, (apparmor_profile(host, os.path.realpath(sys.executable)),)
    if host.container:
        return "this container doesn't allow them", container_options(host)
    if name == "user namespaces" and _is_chroot():
        return "this is a chroot, and the kernel makes none there", (
            Remedy("Use a container, systemd-nspawn or pivot_root(2) in place of chroot."),
        )
    if _is_filtered():
        return "a system call filter is in force", (
            Remedy(
                "If this is a service of systemd, leave out RestrictNamespaces=, SystemCallFilter= and"
                " PrivateUsers=; if it is a container, start it with what is below.",
            ),
            *container_options(host),
        )
    return "", (
        Remedy("A security module or the kernel's settings forbid it: the kernel's log may say which."),
    )


def _is_chroot() -> bool:
    mounts = read("/proc/self/mountinfo")
    return mounts is not None and all(line.split()[4:5] != ["/"] for line in mounts.splitlines())


def _is_filtered() -> bool:
    status = read("/proc/self/status") or ""
    return any(line.split() == ["Seccomp:", "2"] for line in status.splitlines())


def _other_kernel() -> Remedy:
    return Remedy(
        "Start a kernel with CONFIG_USER_NS, CONFIG_NET_NS, CONFIG_PID_NS, CONFIG_IPC_NS, CONFIG_UTS_NS and"
        " CONFIG_CGROUPS: those of the distributions have them."
    )


def check_ids(host: Host) -> Finding:
    """The user ids that boxes get."""
    from box_policy.sandbox.launcher import SandboxError
    from box_policy.sandbox.namespaces.identity import choose_identity, parse_id_map

    name = "user ids"
    try:
        maps = [parse_id_map(Path(f"/proc/self/{kind}_map").read_text()) for kind in ("uid", "gid")]
        who = choose_identity(os.geteuid(), os.getegid(), maps[0], maps[1], writes_host_directory=False)
    except SandboxError as error:
        return Finding(name, "missing", str(error))
    except (OSError, ValueError, TypeError) as error:
        return Finding(name, "missing", f"/proc/self/uid_map can't be read: {error}")
    if not who.is_range:
        return Finding(name, "ok", f"one id ({who.uid}), the caller's own: all of its boxes share its quotas")
    if who.ranges == 1:
        return Finding(name, "limited", f"{who.count} ids from {who.uid} on, which all boxes share")
    return Finding(name, "ok", f"{who.count} for each box, from {who.uid} on: {who.ranges} such ranges")
