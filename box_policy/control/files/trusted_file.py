"""Reads a file whose content must be nobody else's, and whole.

A file that is written in place holds, for a while, the first half of what it will hold; and half a policy
can be a valid one that allows more. A read lease (fcntl(2), F_SETLEASE) tells: the kernel grants none while
anybody has the file open for writing, and holds up whoever opens it then until the lease is given back.
Where there are no leases, a content counts that stays the same for a while.
"""

import errno
import fcntl
import hashlib
import os
import signal
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from box_policy.control.files.mounts import mount_of
from box_policy.control.files.trusted_path import Trail, UntrustedError, open_trusted

SETTLE: Final = 1.0
"""Seconds for which a content must stay the same, where there are no leases."""

_LEASED: Final = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
)
"""File systems that no other machine writes to. Elsewhere (9p, FUSE, virtiofs, CIFS) a lease may well be
granted, but says nothing about the writers at the other end."""

_PSEUDO: Final = frozenset(
    {
        "autofs",
        "binder",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "cpuset",
        "debugfs",
        "devpts",
        "efivarfs",
        "functionfs",
        "fusectl",
        "mqueue",
        "nfsd",
        "nsfs",
        "pipefs",
        "proc",
        "pstore",
        "resctrl",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "smackfs",
        "sockfs",
        "sysfs",
        "tracefs",
        "usbfs",
        "xenfs",
    }
)
"""File systems that the kernel makes up. A file of root's in them may well say what another user told the
kernel: /proc/PID/comm is the name that he gave a program."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A content that counts if it is still the same later."""

    digest: bytes
    identity: tuple[int, ...]
    taken: float
    """Monotonic seconds."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A complete content that isn't known yet."""

    data: bytes
    digest: bytes


@dataclass(frozen=True, slots=True)
class Known:
    """The content is one of those already known."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class Unsettled:
    """It is open for writing, or there is no lease to tell."""

    sample: Sample | None
    """What to come back with after SETTLE seconds; None if it is open for writing."""


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no such file."""


@dataclass(frozen=True, slots=True)
class Refused:
    """It can't be read, or mustn't be trusted."""

    why: str


type Look = Whole | Known | Unsettled | Missing | Refused


def look(
    path: Path, *, max_bytes: int, known: Collection[bytes] = (), sample: Sample | None = None, trail: Trail
) -> Look:
    """What is in a file now. Never waits for a writer, and makes none wait but for a content not known.

    Args:
        path: absolute.
        known: digests (SHA-256) of contents that need no second look.
        sample: what the last look came back with, if it was Unsettled.
        trail: gets what the path leads over.
    """
    try:
        fd = open_trusted(path, trail)
    except UntrustedError as error:
        return Refused(str(error))
    except (FileNotFoundError, NotADirectoryError):
        return Missing()
    except BlockingIOError:  # another process holds a write lease, and is told to give it up
        return Unsettled(None)
    except (OSError, ValueError) as error:  # ValueError: a null character
        return Refused(_reason(error))
    try:
        return _look(fd, max_bytes, known, sample)
    except OSError as error:
        return Refused(_reason(error))
    finally:
        os.close(fd)


def _look(fd: int, max_bytes: int, known: Collection[bytes], sample: Sample | None) -> Look:
    before = os.fstat(fd)
    data = _read(fd, before.st_size, max_bytes)
    digest = hashlib.sha256(data or b"").digest()
    if data is not None and digest in known:
        return Known(digest)
    mount = mount_of(fd)
    if mount is None:
        return Refused("it can't be told which file system it is on")
    if mount.filesystem in _PSEUDO:
        return Refused(f"it is no file on a disk, but one of the kernel's ({mount.filesystem})")
    if data is None:
        return Refused(f"it is larger than {max_bytes // 1024 // 1024} MiB")
    if mount.filesystem in _LEASED:
        try:
            leased = _read_leased(fd, len(data), max_bytes)
        except _NoLeaseError:
            pass
        else:
            return Unsettled(None) if leased is None else Whole(leased, hashlib.sha256(leased).digest())
    now = time.monotonic()
    identity = _identity(os.fstat(fd))
    if identity != _identity(before) or len(data) != before.st_size:
        return Unsettled(None)
    if sample is None or (sample.digest, sample.identity) != (digest, identity):
        return Unsettled(Sample(digest, identity, now))
    return Unsettled(sample) if now - sample.taken < SETTLE else Whole(data, digest)


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _read(fd: int, size: int, max_bytes: int) -> bytes | None:
    """The content, and a byte more if it has grown; None if there is too much of it."""
    return None if size > max_bytes else os.pread(fd, size + 1, 0)


class _NoLeaseError(Exception):
    """It is another user's file, or the file system has no leases."""


def _read_leased(fd: int, size: int, max_bytes: int) -> bytes | None:
    """The content; None if somebody has the file open for writing, or wants to, or it is of another size."""
    # A lease that a writer wants back is asked for with SIGIO, which kills a process that doesn't expect it.
    # SIGURG is ignored by default, and whoever handles it must expect it for no reason. No realtime signal:
    # the kernel sends SIGIO after all when the queue of those is full.
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return None
        raise _NoLeaseError from None
    try:
        # From here on nobody need be told: the lease is asked after below. To take it has set the owner.
        fcntl.fcntl(fd, fcntl.F_SETOWN, 0)
        # As few calls as can be: a writer waits, and each call may end with waiting for the interpreter.
        data = _read(fd, size, max_bytes)
        whole = fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK
    finally:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            pass  # taken away already: the writer has waited for longer than fs.lease-break-time
    return data if whole and data is not None and len(data) == size else None
