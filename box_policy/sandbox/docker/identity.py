"""Who has started a container: this process, so that another can tell whether it still lives."""

import os
from pathlib import Path

from box_policy.sandbox.namespaces import processes

BOX = "box-policy.box"
"""The label with the id of the box that a container is."""
LAUNCHER = "box-policy.launcher"
RUNTIME = "box-policy.runtime"
"""The label of images, volumes and containers that hold a runtime: its version."""
IMAGE_BOX = "box-policy.image.box"
"""Of an image: the id of the box that it was made of. Other labels than the container's own, since whoever
starts a container of the image passes them on to it."""
IMAGE_LAUNCHER = "box-policy.image.launcher"
SNAPSHOT = "box-policy.snapshot"
_PID_DIGITS = 10
EPHEMERAL = "ephemeral"
"""The value of ``SNAPSHOT`` of an image that is of no use once its launcher is dead."""


def own() -> str:
    """This process: the machine's boot, the pid namespace, the pid in it and the time of its start."""
    return "/".join((boot(), *own_process()))


def own_process() -> tuple[str, str, str]:
    """The same, as this boot of the machine knows it."""
    return _pid_namespace(), str(os.getpid()), str(_started(os.getpid()))


def may_live(launcher: str) -> bool | None:
    """Whether a launcher is still there; None if that can't be seen from here.

    One of another boot of this machine is not there; nor is one of another machine, which may live.
    """
    parts = launcher.split("/")
    if len(parts) != 4:
        return None
    of_boot, namespace, pid, started = parts
    if of_boot != boot():
        return False
    if namespace != _pid_namespace() or not (pid.isascii() and pid.isdigit()) or len(pid) > _PID_DIGITS:
        return None
    found = _started(int(pid))
    if found is None and _exists(int(pid)):
        return None  # another user's, where /proc hides those (hidepid, proc(5))
    return str(found) == started


def is_of_this_boot(launcher: str) -> bool:
    """Whether a launcher was started since this machine was."""
    return launcher.partition("/")[0] == boot()


def boot() -> str:
    """What the kernel calls this run of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False  # this process may signal it, so it would have seen it: it is gone since, or a zombie


def _started(pid: int) -> int | None:
    try:
        process = processes.parse(Path(f"/proc/{pid}/stat").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if process is None or process.state == "Z" else process.started
