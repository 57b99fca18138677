"""The Linux system calls that Python's standard library has no name for, by ctypes.

Each raises OSError with the call as ``filename``. Nothing here allocates a thread
or imports at call time, so all of it is usable after fork() and after pivot_root().
"""

import ctypes
import errno
import os
import struct

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_IDMAP = 0x100000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_SET_SECUREBITS = 28
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2

_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

# These three are newer than the point where all architectures began to share their numbers.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_machine = os.uname().machine


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _checked(result: int, call: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), call)
    return result


def _syscall(number: int, call: str, *arguments: object) -> int:
    # A variadic C function promotes nothing for us: every integer must be passed as a long.
    converted = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    return _checked(int(_libc.syscall(ctypes.c_long(number), *converted)), call)


def mount(source: str, target: str, fstype: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    _checked(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            os.fsencode(fstype) if fstype else None,
            ctypes.c_ulong(flags),
            os.fsencode(data) if data else None,
        ),
        f"mount {fstype or 'flags'} on {target}",
    )


def detach(target: str) -> None:
    """umount2(2) with MNT_DETACH."""
    _checked(_libc.umount2(os.fsencode(target), MNT_DETACH), f"unmount {target}")


def pivot_root(new_root: str) -> None:
    """Make ``new_root`` the root directory and leave nothing of the old one (pivot_root(2), "." twice)."""
    number = _SYS_PIVOT_ROOT.get(_machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "pivot_root")
    os.chdir(new_root)
    _syscall(number, f"pivot_root {new_root}", b".", b".")
    detach(".")
    os.chdir("/")


def clone_mount(fd: int, recursive: bool = False) -> int:
    """Copy the mount under what ``fd`` (which may be O_PATH) refers to; return the copy, attached nowhere.

    The caller must be in the mount namespace that ``fd`` was opened in.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    return _syscall(_SYS_OPEN_TREE, "open_tree", fd, b"", flags)


def attach_mount(fd: int, target: str) -> None:
    """Attach a mount from ``clone_mount`` at ``target``."""
    _syscall(
        _SYS_MOVE_MOUNT,
        f"move_mount on {target}",
        fd,
        b"",
        -100,
        os.fsencode(target),
        _MOVE_MOUNT_F_EMPTY_PATH,
    )


def set_mount_attributes(fd: int, attributes: int, recursive: bool = False, user_namespace: int = 0) -> None:
    """mount_setattr(2) on a mount from ``clone_mount``."""
    request = struct.pack("=QQQQ", attributes, 0, 0, user_namespace)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _syscall(_SYS_MOUNT_SETATTR, "mount_setattr", fd, b"", flags, request, len(request))


def prctl(option: int, argument: int = 0) -> None:
    """prctl(2) with one integer argument."""
    arguments = (ctypes.c_ulong(value) for value in (argument, 0, 0, 0))
    _checked(_libc.prctl(option, *arguments), f"prctl {option}")


def be_effectively(uid: int) -> None:
    """Become the effective user ``uid``, with the capabilities and the access to files that root has."""
    prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    os.setresuid(-1, uid, -1)
    _libc.setfsuid(0)  # it reports no error
    prctl(PR_SET_DUMPABLE, 1)  # cleared by the change, as the death signal is


def set_process_name(name: str) -> None:
    """What ``ps`` shows for this process (at most 15 bytes)."""
    _checked(_libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0), "prctl PR_SET_NAME")


def set_command_line(text: str) -> None:
    """What /proc/<pid>/cmdline shows for this process and those it forks."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, proc_pid_stat(5)
    if 0 < start < end:
        ctypes.memmove(start, text.encode()[: end - start - 1].ljust(end - start, b"\0"), end - start)


def cut_capabilities(keep: frozenset[int]) -> None:
    """Leave of the permitted, effective and bounding sets what is in ``keep``; clear the other sets."""
    for capability in range(64):
        # One that isn't there (0) need not be dropped, which takes CAP_SETPCAP; -1: this kernel has no such.
        if capability not in keep and _libc.prctl(PR_CAPBSET_READ, ctypes.c_ulong(capability), 0, 0, 0) == 1:
            prctl(PR_CAPBSET_DROP, capability)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    held = ctypes.create_string_buffer(24)
    _checked(_libc.capget(header, held), "capget")
    _, low, _, _, high, _ = struct.unpack("=6I", held.raw)
    mask = sum(1 << capability for capability in keep) & (high << 32 | low)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    _checked(_libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)), "capset")


def install_seccomp_filter(program: bytes) -> None:
    """Install a BPF program (8 bytes an instruction). Needs no_new_privs, or CAP_SYS_ADMIN."""
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = _SockFprog(len(program) // 8, ctypes.addressof(buffer))
    _checked(
        _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(fprog), 0, 0),
        "prctl PR_SET_SECCOMP",
    )
