"""Why this machine can't make a box, in one line: what, where, and what to do about it."""

import errno
import os
from pathlib import Path

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


def explain(error: OSError) -> str:
    """One line for a system call that failed while a box was made."""
    step = error.filename if isinstance(error.filename, str) else error.strerror
    reason = os.strerror(error.errno) if error.errno else "unknown error"
    if step == "nf_tables":
        return (
            f"the kernel refused the firewall rules of the box's network namespace: {reason};"
            " load the modules nf_tables, nft_redir, nft_fib_inet and nft_reject_inet with modprobe,"
            " or use a kernel that has them (CONFIG_NF_TABLES_INET)"
        )
    for path, bad, remedy in _SWITCHES:
        try:
            if Path(path).read_text().strip() == bad:
                return f"user namespaces are switched off on this machine ({path} is {bad}); {remedy}"
        except OSError:
            continue
    if error.errno in (errno.EPERM, errno.EACCES):
        return (
            f"this machine doesn't permit what a box needs ({step}: {reason}); inside a container, allow"
            " user namespaces: for Docker, --security-opt seccomp=unconfined --security-opt"
            " systempaths=unconfined --security-opt apparmor=unconfined"
        )
    if error.errno == errno.ENOSPC:
        return (
            f"the limit of namespaces is reached ({step}: {reason}); raise the sysctls user.max_*_namespaces,"
            " or close boxes"
        )
    return f"the box could not be made ({step}: {reason})"
