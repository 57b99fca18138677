"""What everything rests on: operating system, processor, Python, the kernel and its system call filter."""

import errno
import os
import platform
import socket
import sys
from pathlib import Path
from typing import Final

from box_policy.sandbox.doctor.findings import Finding, Remedy
from box_policy.sandbox.doctor.host import Host
from box_policy.sandbox.doctor.remedies import as_root
from box_policy.sandbox.doctor.trial import Outcome, Trial, attempt

_SECONDS: Final = 5.0
_ARCHITECTURES: Final = ("x86_64", "aarch64")
_OTHER_KERNEL: Final = (
    "Start a kernel of Linux 5.14 or newer, of x86_64 or aarch64, with CONFIG_SECCOMP_FILTER."
)


def check_system(host: Host) -> Finding:
    """Linux, on a processor whose system calls the filter knows."""
    where = host.distribution
    if host.container:
        where += f", in a container ({host.container})"
    if host.wsl:
        where += ", in WSL"
    found = f"{host.system} on {host.machine}, {where}"
    if host.system != "Linux":
        remedy = Remedy("Boxes are made by Linux: use a virtual machine (on Windows, WSL 2) with it.")
        return Finding("system", "missing", found, (remedy,))
    if host.machine not in _ARCHITECTURES:
        return Finding("system", "missing", found, (Remedy("Boxes need a processor of x86_64 or aarch64."),))
    if host.wsl and "wsl2" not in host.release.lower():
        remedy = Remedy(
            "If this is WSL 1, which has no Linux kernel, change to WSL 2 (in Windows' command line; the"
            " names are those of wsl --list):",
            ("wsl --set-version NAME 2",),
        )
        return Finding("system", "limited", found, (remedy,))
    if not Path("/proc/self").exists():
        remedy = Remedy("Mount it:", (as_root(host, "mount -t proc proc /proc"),))
        return Finding("system", "missing", f"{found}; /proc is not mounted", (remedy,))
    return Finding("system", "ok", found)


def check_python(host: Host) -> Finding:
    """An interpreter that processes of boxes can be started with."""
    found = f"{platform.python_implementation()} {platform.python_version()}, {sys.executable or 'no path'}"
    if not sys.executable or not os.access(sys.executable, os.X_OK):
        remedy = Remedy("Start box-policy by an interpreter's own path: python3 -m box_policy")
        return Finding("Python", "missing", found, (remedy,))
    return Finding("Python", "ok", found)


def check_kernel(host: Host) -> Finding:
    """The system calls that boxes and gates are made with."""
    return judge_kernel(host, attempt(_use_system_calls, _SECONDS))


def _use_system_calls(trial: Trial) -> None:
    from box_policy.gate.network_namespace import netns_cookie
    from box_policy.sandbox.namespaces import syscalls

    trial.step("pidfd_open")
    os.close(os.pidfd_open(os.getpid()))
    trial.step("mount_setattr")
    try:
        syscalls.set_mount_attributes(-1, 0)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise  # of a kernel that has it, the descriptor is the fault
    trial.step("SO_NETNS_COOKIE")
    with socket.socket() as sock:
        netns_cookie(sock)


def judge_kernel(host: Host, outcome: Outcome) -> Finding:
    """What the trial of system calls says."""
    failure = outcome.failure
    if failure is None:
        return Finding("kernel", "ok", host.release)
    remedy = Remedy(_OTHER_KERNEL)
    if failure.step == "SO_NETNS_COOKIE":
        # A gate's control endpoint tells by it whether a client is in a box.
        return Finding("kernel", "limited", f"{host.release}: no {failure}", (remedy,))
    return Finding("kernel", "missing", f"{host.release}: {failure}", (remedy,))


def check_seccomp(host: Host) -> Finding:
    """The filter of boxes' programs: installed, and seen working."""
    return judge_seccomp(attempt(_filter_system_calls, _SECONDS))


def _filter_system_calls(trial: Trial) -> None:
    from box_policy.sandbox.namespaces import seccomp, syscalls

    architecture = seccomp.native_architecture()
    if architecture is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    trial.step("a file in memory")
    file = os.memfd_create("probe")
    allowed = _may_set_id(file)
    trial.step("filter")
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.install_seccomp_filter(seccomp.assemble(seccomp.box_rules(), architecture))
    trial.tell("refuses", not _may_set_id(file))
    trial.tell("was allowed", allowed)


def _may_set_id(file: int) -> bool:
    try:
        os.fchmod(file, 0o4700)
        os.fchmod(file, 0o700)
    except PermissionError:
        return False
    return True


def judge_seccomp(outcome: Outcome) -> Finding:
    """What the trial of the filter says."""
    facts, failure = outcome.facts, outcome.failure
    if failure is None and facts.get("refuses"):
        found = "the filter of boxes works"
        if not facts.get("was allowed"):
            found = "the filter of boxes can be installed, under another one"
        return Finding("seccomp", "ok", found)
    found = str(failure) if failure else "the filter was taken, and doesn't filter"
    return Finding("seccomp", "missing", found, (Remedy(_OTHER_KERNEL),))
