"""Why this machine can't make a box, in one line: what, where, and what to do about it."""

import errno
import os
from pathlib import Path

from box_policy.sandbox.launcher import SandboxError

# A file of /proc, the value that rules boxes out, and the remedy.
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
_NOT_PERMITTED = (errno.EPERM, errno.EACCES)


def describe(error: BaseException) -> str:
    """One line for whatever ended the making of a box."""
    if isinstance(error, SandboxError):
        return str(error)
    if isinstance(error, OSError):
        return explain(error)
    return f"internal error: {error!r}"


def explain(error: OSError) -> str:
    """One line for a system call that failed while a box was made; its ``filename`` names the step."""
    step = error.filename if isinstance(error.filename, str) else "a system call"
    reason = os.strerror(error.errno) if error.errno else str(error)
    what = f"{step}: {reason}"
    if step == "nf_tables":
        return (
            f"the kernel refused the firewall rules of the box's network namespace ({what});"
            " load the modules nf_tables, nft_redir, nft_fib_inet and nft_reject_inet with modprobe,"
            " or use a kernel that has them (CONFIG_NF_TABLES_INET)"
        )
    if error.errno in (*_NOT_PERMITTED, errno.ENOSPC):
        for path, bad, remedy in _SWITCHES:
            if _setting(path) == bad:
                return f"user namespaces are switched off on this machine ({path} is {bad}); {remedy}"
    if error.errno in _NOT_PERMITTED:
        return (
            f"this machine doesn't permit what a box needs ({what}); inside a container, allow user"
            " namespaces: for Docker, --security-opt seccomp=unconfined --security-opt"
            " systempaths=unconfined --security-opt apparmor=unconfined"
        )
    if error.errno == errno.ENOSPC:
        return (
            f"the limit of namespaces is reached ({what});"
            " close boxes, or raise the sysctls user.max_*_namespaces"
        )
    if error.errno == errno.ENOSYS:
        return f"this kernel is too old for boxes ({what}); it takes Linux 5.12 or newer"
    if error.errno == errno.ENODEV:
        return f"this kernel lacks a file system that a box needs ({what}); load its module with modprobe"
    return f"the box could not be made ({what})"


def _setting(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
