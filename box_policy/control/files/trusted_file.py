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

from box_policy.control.files.trusted_path import Trail, UntrustedError, open_trusted

SETTLE: Final = 0.1
"""Seconds for which a content must stay the same, where there are no leases."""

_LEASED: Final = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
)
"""File systems that no other machine writes to. Elsewhere (9p, FUSE, virtiofs, CIFS) a lease may well be
granted, but says nothing about the writers at the other end."""

_CHUNK: Final = 1 << 20


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
    before = _identity(fd)
    data = _read(fd, max_bytes)
    digest = hashlib.sha256(data or b"").digest()
    if data is not None and digest in known:
        return Known(digest)
    if _filesystem(fd) in _LEASED:
        try:
            leased, data = _read_leased(fd, max_bytes)
        except _NoLeaseError:
            pass
        else:
            if not leased:
                return Unsettled(None)
            if data is None:
                return _too_large(max_bytes)
            return Whole(data, hashlib.sha256(data).digest())
    now = time.monotonic()
    identity = _identity(fd)
    if identity != before:
        return Unsettled(None)
    if sample is None or (sample.digest, sample.identity) != (digest, identity):
        return Unsettled(Sample(digest, identity, now))
    if now - sample.taken < SETTLE:
        return Unsettled(sample)
    return _too_large(max_bytes) if data is None else Whole(data, digest)


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _too_large(max_bytes: int) -> Refused:
    return Refused(f"it is larger than {max_bytes // 1024 // 1024} MiB")


def _identity(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _read(fd: int, max_bytes: int) -> bytes | None:
    """The whole content; None if there is too much of it."""
    if os.fstat(fd).st_size > max_bytes:
        return None
    data = bytearray()
    while len(data) <= max_bytes:
        chunk = os.pread(fd, min(_CHUNK, max_bytes + 1 - len(data)), len(data))
        if not chunk:
            return bytes(data)
        data += chunk
    return None


class _NoLeaseError(Exception):
    """It is another user's file, or the file system has no leases."""


def _read_leased(fd: int, max_bytes: int) -> tuple[bool, bytes | None]:
    """Whether nobody had the file open for writing, nor wanted to, and the content."""
    # A lease that a writer wants back is asked for with SIGIO, which kills a process that doesn't expect it.
    # SIGURG is ignored by default, and whoever handles it must expect it for no reason. No realtime signal:
    # the kernel sends SIGIO after all when the queue of those is full.
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False, None
        raise _NoLeaseError from None
    try:
        # From here on nobody need be told: the lease is asked after below. To take it has set the owner.
        fcntl.fcntl(fd, fcntl.F_SETOWN, 0)
        data = _read(fd, max_bytes)
        return fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK, data
    finally:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            pass  # taken away already: the writer has waited for longer than fs.lease-break-time


def _filesystem(fd: int) -> str | None:
    """The type of the file system that a file is on; None if that can't be told.

    By the mount's id: statfs(2) isn't to be had from Python, and a device's number doesn't tell on btrfs.
    """
    try:
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/thread-self/fdinfo/{fd}").read_text().splitlines()
        )
        mount = fields["mnt_id"].strip()
        with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith(mount + " "):
                    return line.split(" - ", 1)[1].split()[0]
    except (OSError, ValueError, LookupError):
        pass
    return None
