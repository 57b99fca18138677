"""The request to start a program: checked, and put into a message."""

import errno
import fcntl
import os
import stat

from box_policy.sandbox.launcher import ProgramSpec, SandboxError
from box_policy.sandbox.namespaces.messages import Message

_LARGEST_TERMINAL = 0xFFFF


def program_request(program: ProgramSpec) -> tuple[Message, list[int]]:
    """The start request for a program, and the descriptors that go with it.

    SandboxError for a program that can't be one.
    """
    argv = [os.fspath(argument) for argument in program.argv]
    environment = dict(program.env)
    if not argv or not argv[0]:
        raise SandboxError("no program named")
    if any("\0" in text for text in (*argv, *environment, *environment.values(), program.cwd)):
        raise SandboxError(f"{argv[0]!r}: an argument, a variable or the directory holds a NUL character")
    if any(not name or "=" in name for name in environment):
        raise SandboxError(f"{argv[0]!r}: a variable's name is empty or holds '='")
    if program.terminal is not None and not all(0 <= size <= _LARGEST_TERMINAL for size in program.terminal):
        raise SandboxError(f"{argv[0]!r}: no such terminal size: {program.terminal}")
    stdio = (program.stdin, program.stdout, program.stderr)
    for fd in stdio:
        if fd is not None:
            _check_descriptor(fd)
    request = {
        "op": "start",
        "argv": argv,
        "env": environment,
        "cwd": program.cwd,
        "terminal": list(program.terminal) if program.terminal is not None else None,
        "stdio": [fd is not None for fd in stdio],
    }
    return request, [fd for fd in stdio if fd is not None]


def _check_descriptor(fd: int) -> None:
    try:
        mode = os.fstat(fd).st_mode
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    except OSError as error:
        raise SandboxError(f"descriptor {fd}: {os.strerror(error.errno or errno.EBADF)}") from None
    if flags & os.O_PATH or not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        # Relative to a directory a program reaches the host's files; a file it may own, and then can open
        # again for writing; a socket belongs to the host's network namespace, and can be connected anew.
        raise SandboxError(f"descriptor {fd}: a program gets pipes and character devices, and nothing else")
