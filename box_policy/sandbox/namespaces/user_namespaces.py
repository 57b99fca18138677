"""Making user namespaces and writing their id maps, user_namespaces(7).

A map of more than the caller's own id must be written by a process outside the namespace; so each
of these works with a child of this process, forked ahead so that its start costs no waiting.
"""

import contextlib
import errno
import os
from collections.abc import Callable

from box_policy.sandbox.namespaces import syscalls
from box_policy.sandbox.namespaces.identity import Identity

# Limits of U1: U2 is the only user namespace there will ever be below it, and nothing in it makes a
# namespace of any other kind. The rest is what a user of the host has for all that runs as it, boxes too.
_LIMITS = {
    "user_namespaces": 1,
    **dict.fromkeys(
        (f"{kind}_namespaces" for kind in ("cgroup", "ipc", "mnt", "net", "pid", "time", "uts")), 0
    ),
    "fanotify_groups": 4,
    "fanotify_marks": 1024,
}
_INOTIFY_LIMITS = {"instances": 32, "watches": 65_536}
_INOTIFY_SHARE = 4
"""A box has at most the fourth part of the host's limit for one user."""


def write(path: str, text: str) -> None:
    """Write ``text`` to a file of /proc in one piece. OSError names the file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def limit_descendants() -> None:
    """Limit what this process's user namespace and those in it hold together (/proc/sys/user)."""
    limits = dict(_LIMITS)
    for kind, most in _INOTIFY_LIMITS.items():
        with contextlib.suppress(OSError), open(f"/proc/sys/fs/inotify/max_user_{kind}") as file:
            limits[f"inotify_{kind}"] = max(1, min(most, int(file.read()) // _INOTIFY_SHARE))
    # By the host's /proc, which is still mounted: the limits are those of the writer's namespace.
    for name, limit in limits.items():
        with contextlib.suppress(FileNotFoundError):  # a kind that this kernel does not have
            write(f"/proc/sys/user/max_{name}", str(limit))


def map_self(who: Identity) -> None:
    """Map this process's only id in the user namespace that it has just made."""
    uid_map, gid_map = who.outer_maps
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", uid_map)
    write("/proc/self/gid_map", gid_map)


class _Child:
    """A forked child that does one thing when told, and says how it went: an errno, 0 if well."""

    def __init__(self, act: Callable[[], None]) -> None:
        go, self._go = os.pipe()
        self._done, done = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._go)
                act_now = os.read(go, 1)
                if act_now:
                    act()
                    os.write(done, b"\0")
                    os.read(go, 1)  # stay until let go
            except OSError as error:
                os.write(done, bytes([(error.errno or errno.EIO) & 0xFF]))
            finally:
                os._exit(0)
        os.close(go)
        os.close(done)

    def tell(self) -> None:
        """Have it act."""
        os.write(self._go, b".")

    def wait(self, what: str) -> None:
        """Wait until it has acted. OSError, with ``what`` as the file name, if that failed."""
        answer = os.read(self._done, 1)
        code = answer[0] if answer else errno.EIO
        if code:
            self.let_go()
            raise OSError(code, os.strerror(code), what)

    def let_go(self) -> None:
        """Let it end. It is to be reaped still."""
        os.close(self._go)
        os.close(self._done)


class Mapper:
    """Writes the id maps of this process, from the user namespace that the process is about to leave."""

    def __init__(self, who: Identity) -> None:
        target = os.getpid()

        def write_maps() -> None:
            with contextlib.suppress(OSError):  # a root that lacks capabilities itself
                # The namespace's owner may write its maps; root may, too, but not in every container.
                syscalls.be_effectively(who.uid)
            for kind, text in zip("ug", who.outer_maps, strict=True):
                write(f"/proc/{target}/{kind}id_map", text)

        self._child = _Child(write_maps)

    def map_parent(self) -> None:
        """Write them, now that this process is in its new user namespace."""
        self._child.tell()
        self._child.wait("uid_map")
        self._child.let_go()


class NewUserNamespace:
    """A user namespace in the making, a child of this process's own."""

    def __init__(self) -> None:
        self._child = _Child(lambda: os.unshare(os.CLONE_NEWUSER))
        self._child.tell()

    def map(self, uid_map: str, gid_map: str, proc: str = "/proc") -> int:
        """Write its maps; return a descriptor of it.

        ``proc`` is where the /proc of this process's pid namespace is mounted.
        """
        self._child.wait("user namespace")
        directory = f"{proc}/{self._child.pid}"
        try:
            write(f"{directory}/uid_map", uid_map)
            write(f"{directory}/gid_map", gid_map)
            return os.open(f"{directory}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            self._child.let_go()
