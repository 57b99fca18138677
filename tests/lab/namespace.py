"""Moves the test process into a network namespace that has no route out."""

import fcntl
import os
import socket
import struct
from pathlib import Path

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1

_entered = False


class LabUnavailable(Exception):
    """This machine can't make the test network. The message says why."""


def enter() -> None:
    """Make the calling process the lab's "gate's host": a new network namespace with only ``lo``.

    Everything that the process starts from now on lives there too, so no test reaches anything
    outside. Call it before the process has threads: a namespace is a thread's property, and the kernel
    refuses a new user namespace to a process that has several. Repeating it does nothing.

    With CAP_SYS_ADMIN only the network namespace is new. Otherwise a user namespace comes with it, in
    which the caller keeps its own user and group id. Mapping the caller to 0 instead would tell a box
    launcher that it is root, with a range of ids to give out, when it has just one. With the ids kept, what
    the tests start sees what an ordinary user's process sees: no capabilities after an exec, one id,
    and the right to make user namespaces of its own.

    Raises LabUnavailable, with the process unchanged, if this machine doesn't allow it.
    """
    global _entered
    if _entered:
        return
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise LabUnavailable(f"the test process already has {threads} threads")
    # A machine may grant the namespace and then deny what the lab needs in it (AppArmor does). There is
    # no way back from a namespace, so a child goes first.
    if reason := _rehearse():
        raise LabUnavailable(reason)
    _move()
    _entered = True


def unshare_network() -> None:
    """Give this process a network namespace of its own, and a user namespace if that takes one."""
    try:
        os.unshare(os.CLONE_NEWNET)
    except PermissionError:
        uid, gid = os.geteuid(), os.getegid()
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _move() -> None:
    unshare_network()
    bring_up("lo")
    # What the lab and the gate need, found missing here rather than in the middle of a test.
    socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0).close()
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))


def bring_up(interface: str) -> None:
    """Switch a network interface of this namespace on."""
    # By ioctl, since pyroute2 takes 130 ms to import and most test runs need nothing else of it.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh22x", interface.encode(), 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh22x", interface.encode(), flags | _IFF_UP))


def _rehearse() -> str:
    """Try the move in a child process. What went wrong there, or an empty string."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _move()
        except OSError as error:
            os.write(write_end, f"no network namespace with IPv4 and IPv6 here: {error}".encode())
        except BaseException as error:
            os.write(write_end, repr(error).encode())
        finally:
            # Past every exit handler and buffer that the child has inherited from the test process.
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as answer:
        reason = answer.read().decode(errors="replace")
    os.waitpid(child, 0)
    return reason
