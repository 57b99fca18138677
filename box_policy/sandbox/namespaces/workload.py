"""The last steps of a child of the box's pid 1 before it becomes a program of the box.

Nothing is imported here at run time: after pivot_root() the standard library is out of reach.
"""

# Paths are strings here, as system calls take them.
# ruff: noqa: PTH113

import errno
import fcntl
import json
import os
import resource
import select
import signal
import termios
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from box_policy.sandbox.namespaces import file_worker, syscalls

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Of root's capabilities (linux/capability.h), those over the box's own users, files and processes.
# Not CAP_FSETID (writing to a set-uid file in a host directory would keep the bit) and not
# CAP_SETFCAP (capabilities set there would be the host's).
_CAP_CHOWN = 0
_CAP_DAC_OVERRIDE = 1
_CAP_FOWNER = 3
_CAP_KILL = 5
_CAP_SETGID = 6
_CAP_SETUID = 7
CAPABILITIES = frozenset((_CAP_CHOWN, _CAP_DAC_OVERRIDE, _CAP_FOWNER, _CAP_KILL, _CAP_SETGID, _CAP_SETUID))
_LAST_DESCRIPTOR = 0x7FFFFFFF
_DESCRIPTORS = 8192
_FEW_DESCRIPTORS = 1024
_TEXT_SIZE = 500


class StartError(Exception):
    """The program can't be started; ``number`` is the errno, 0 if no program of that name was found."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


class Rights(NamedTuple):
    """What every program of a box runs with."""

    enter: Callable[[], None]
    """Makes the child the programs' user, where that user is."""
    descriptor: int | None
    """What ``enter`` needs, and closes."""
    seccomp: bytes
    """The filter of system calls, as ``seccomp`` assembles it."""
    pids: int | None
    """Bounds the processes of the user that it runs as, with RLIMIT_NPROC."""
    environment: Mapping[str, str]
    """What a request's is added to."""


def run(
    request: dict[str, Any], stdio: Sequence[int], terminal: int | None, report: int, rights: Rights
) -> NoReturn:
    """Become the program that ``request`` names, or do the operation on files that it holds.

    ``stdio`` becomes 0, 1 and 2; ``terminal``, if any, the controlling one. ``report`` closes once the
    program runs; if it can't run, it first carries the errno and a text.
    """
    try:
        os.setsid()
        if terminal is not None:
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        _close_all_but(*((report,) if rights.descriptor is None else (report, rights.descriptor)))
        _reset_signals()
        if rights.pids is not None:
            # Before the change of user, which is where the kernel looks whether one more may start.
            limit_processes(rights.pids)
        rights.enter()
        _confine(rights.seccomp)
        if "files" in request:
            os.close(report)
            file_worker.run(request["files"])
        _execute(request, rights.environment)
    except StartError as error:
        _refuse(report, error.number, str(error))
    except OSError as error:
        _refuse(report, error.errno or errno.EIO, error.strerror or str(error))
    except BaseException as error:
        _refuse(report, errno.EIO, repr(error))
    finally:
        os._exit(127)


def limit_processes(number: int) -> None:
    """Set RLIMIT_NPROC, getrlimit(2), to ``number`` or what it is, if that is less."""
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    limit = number if hard == resource.RLIM_INFINITY else min(number, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))


def limit_descriptors() -> None:
    """Set RLIMIT_NOFILE, getrlimit(2), well below what pid 1 and the caller have.

    A sender's limit is also what the kernel holds its user's descriptors in flight to, unix(7). So it
    refuses the programs of boxes before those that serve them, where all are of one user.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = _DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, max(hard // 2, _FEW_DESCRIPTORS), hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def limit_cores() -> None:
    """Set RLIMIT_CORE, getrlimit(2), to 1: no core file is as short, and the kernel starts no handler.

    Where core_pattern names a handler (systemd-coredump, apport), a limit of 0 doesn't keep the kernel from
    starting it, core(5): as the host's root, with whatever a program of the box has in its memory, to be
    written to the host's disk. With 1, which a handler has that crashes itself, it does.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def refusal(number: int, text: str) -> bytes:
    """What the report says of a program that can't be started. Short enough to be written whole."""
    text = text[:_TEXT_SIZE]
    while len(report := json.dumps({"errno": number, "error": text}).encode("ascii")) >= select.PIPE_BUF:
        text = text[: len(text) * 3 // 4]  # a character takes up to twelve bytes
    return report


def _refuse(report: int, number: int, text: str) -> None:
    os.write(report, refusal(number, text))


def _close_all_but(*kept: int) -> None:
    below = 3
    for fd in sorted(kept):
        os.closerange(below, fd)
        below = fd + 1
    os.closerange(below, _LAST_DESCRIPTOR)


def _reset_signals() -> None:
    # What is ignored stays ignored across exec(): by Python itself, or by whoever started the caller.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _confine(seccomp: bytes) -> None:
    limit_cores()
    limit_descriptors()
    syscalls.cut_capabilities(CAPABILITIES)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.install_seccomp_filter(seccomp)


def _execute(request: dict[str, Any], own: Mapping[str, str]) -> NoReturn:
    argv: list[str] = request["argv"]
    environment = {} if request["terminal"] is None else {"TERM": "xterm-256color"}
    environment |= own
    environment |= request["env"]
    try:
        os.chdir(request["cwd"])
    except OSError as error:
        raise StartError(error.errno or errno.EIO, f"{request['cwd']}: {error.strerror}") from None
    name = argv[0]
    # os.execvpe() would import a module now.
    directories = [""] if "/" in name else environment["PATH"].split(":")
    denied = ""
    for directory in directories:
        path = f"{directory}/{name}" if directory else name
        try:
            os.execve(path, argv, environment)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError):
            if os.path.isfile(path):
                raise StartError(errno.ENOENT, f"{path}: its interpreter is not in the box") from None
        except PermissionError:
            denied = denied or path
        except OSError as error:
            raise StartError(error.errno or errno.EIO, f"{path}: {error.strerror}") from None
    if denied:
        raise StartError(errno.EACCES, f"{denied}: permission denied")
    where = "" if "/" in name else f" on PATH ({environment['PATH']})"
    raise StartError(0, f"{name}: no such program in the box{where}")
