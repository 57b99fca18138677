"""A policy counts only when it is whole: nobody has its file open for writing, and nobody wants to."""

import asyncio
import dataclasses
import errno
import fcntl
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from box_policy.audit.records import Outcome
from box_policy.control import file_source
from box_policy.control.files import trusted_file
from box_policy.control.files.mounts import mount_of
from box_policy.control.files.trusted_file import SETTLE, Known, Look, Sample, Unsettled, Whole
from box_policy.policy.model import NetworkPolicy
from tests.control.gate_with_files import OPEN, Files, no_events, rounds, until, watching
from tests.control.reading import in_child, look_at, whole


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    path = tmp_path / "policy.yaml"
    path.write_text("mode: deny-all\n")
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_APPEND])
def test_a_file_that_is_open_for_writing_does_not_count(path: Path, flags: int) -> None:
    writer = os.open(path, flags)
    assert look_at(path) == Unsettled(None)
    os.close(writer)
    whole(path)


def test_a_known_content_is_known_even_then(path: Path) -> None:
    digest = whole(path).digest
    with path.open("a"):
        assert look_at(path, known=[digest]) == Known(digest)


def test_readers_do_not_disturb(path: Path) -> None:
    with path.open():
        whole(path)


WRITER_DURING_THE_READ = """
import fcntl, os, signal, sys, threading
from pathlib import Path
from box_policy.control.files import trusted_file
from box_policy.control.files.trusted_path import Trail
signals = []
path, handling, thread, owner = Path(sys.argv[1]), *sys.argv[2:]
if handling == "handled":
    signal.signal(signal.SIGURG, lambda *_: signals.append("SIGURG"))
if handling == "blocked":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG])
if owner == "told":
    real = fcntl.fcntl
    class Fcntl:
        def __getattr__(self, name): return getattr(fcntl, name)
        def fcntl(self, fd, what, *value): return None if what == fcntl.F_SETOWN else real(fd, what, *value)
    trusted_file.fcntl = Fcntl()
order, read = [], trusted_file._read
def write():
    with path.open("w") as stream:
        order.append("writer")
        stream.write("mode: allow-all")
writer = threading.Thread(target=write)
def read_slowly(fd, size, max_bytes):
    data = read(fd, size, max_bytes)
    if fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
        writer.start()
        while fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK: pass
        data = read(fd, size, max_bytes)
        order.append("reader")
    return data
trusted_file._read = read_slowly
def look():
    print(trusted_file.look(path, max_bytes=100, trail=Trail()))
    writer.join()
    print(*order)
if thread == "main":
    look()
else:
    other = threading.Thread(target=look)
    other.start()
    other.join()
print(*signals)
"""


@pytest.mark.parametrize("owner", ["silent", "told"])
@pytest.mark.parametrize("thread", ["main", "other"])
@pytest.mark.parametrize("handling", ["default", "handled", "blocked"])
def test_a_writer_that_comes_during_the_read_waits_and_kills_nobody(
    path: Path, handling: str, thread: str, owner: str
) -> None:
    """The kernel tells the lease's holder by a signal, whose default action is to kill. ``told``: as in the
    moment before the signal is called off."""
    signals = "SIGURG" if (handling, owner) == ("handled", "told") else ""
    lines = in_child(WRITER_DURING_THE_READ, path, handling, thread, owner).splitlines()
    assert lines == ["Unsettled(sample=None)", "reader writer", signals]
    assert path.read_text() == "mode: allow-all"


# Where there are no leases


@pytest.fixture(params=["the file system", errno.EACCES, errno.EINVAL, errno.ENOLCK])
def no_leases(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "the file system":
        monkeypatch.setattr(trusted_file, "_LEASED", frozenset())
        return
    real = fcntl.fcntl

    def refuse(fd: int, what: int, value: int = 0) -> Any:
        if what == fcntl.F_SETLEASE:
            raise OSError(request.param, "no leases here")
        return real(fd, what, value)

    monkeypatch.setattr(fcntl, "fcntl", refuse)


def earlier(found: Look, seconds: float) -> Sample:
    assert isinstance(found, Unsettled)
    assert found.sample is not None
    return dataclasses.replace(found.sample, taken=found.sample.taken - seconds)


@pytest.mark.usefixtures("no_leases")
def test_without_leases_a_content_counts_that_stays(path: Path) -> None:
    sample = earlier(look_at(path), 0)
    assert look_at(path, sample=sample) == Unsettled(sample), "too soon"
    found = look_at(path, sample=dataclasses.replace(sample, taken=sample.taken - SETTLE))
    assert isinstance(found, Whole)


@pytest.mark.usefixtures("no_leases")
@pytest.mark.parametrize("change", ["content", "time", "inode"])
def test_and_not_one_that_changes(path: Path, change: str) -> None:
    sample = earlier(look_at(path), SETTLE)
    if change == "content":
        status = path.stat()
        path.write_text("mode: DENY-all\n")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(1, 1))
    else:
        new = path.with_name("new")
        new.write_text(path.read_text())
        new.replace(path)
    found = look_at(path, sample=sample)
    assert isinstance(found, Unsettled)
    assert found.sample is not None
    assert found.sample.identity != sample.identity


@pytest.mark.usefixtures("no_leases")
def test_nor_does_what_is_shorter_than_it_should_be(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read may return less than there is, on a network file system."""
    monkeypatch.setattr(trusted_file, "_read", lambda *_: b"mode:")
    assert look_at(path) == Unsettled(None)


@pytest.mark.skipif(shutil.which("findmnt") is None, reason="needs findmnt")
def test_which_file_system_it_is_is_asked_of_the_kernel(path: Path) -> None:
    with path.open() as stream, open("/proc/version") as proc:
        kind = subprocess.run(
            ["findmnt", "-no", "FSTYPE", "-T", path], capture_output=True, text=True, check=True
        ).stdout.strip()
        for descriptor, expected in ((stream.fileno(), kind), (proc.fileno(), "proc")):
            mount = mount_of(descriptor)
            assert mount is not None
            assert mount.filesystem == expected


def test_two_threads_can_read_the_same_file(path: Path) -> None:
    """Each with a lease of its own."""
    found: list[Look] = []
    threads = [
        threading.Thread(target=lambda: found.extend(look_at(path) for _ in range(50))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {type(one) for one in found} == {Whole}


# Half of a policy


SLOW = """\
mode: custom
denied_cidrs:
- 198.51.100.0/24
- 203.0.113.0/24
- 0.0.0.0/0
"""
"""Many a beginning of it is a policy, and one that allows more."""


@pytest.mark.parametrize("leases", [True, False])
@pytest.mark.parametrize("start", ["truncated", "over what was there", "new file"])
async def test_nothing_but_the_whole_of_what_a_slow_writer_writes_counts(
    path: Path, leases: bool, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not leases:
        monkeypatch.setattr(trusted_file, "_LEASED", frozenset())
        monkeypatch.setattr(trusted_file, "SETTLE", 0.2)  # a second isn't needed to see the principle
        monkeypatch.setattr(file_source, "SETTLE", 0.2)
    flags = {"truncated": os.O_TRUNC, "over what was there": 0, "new file": os.O_CREAT}[start]

    def write() -> None:
        if start == "new file":
            path.unlink()
        writer = os.open(path, os.O_WRONLY | flags, 0o644)
        for byte in SLOW.encode():
            os.write(writer, bytes([byte]))
            time.sleep(0.002)
        if start == "over what was there":
            os.truncate(path, len(SLOW))
        os.close(writer)

    async with watching(Files(path, poll=0.005)) as files:
        seen = set()
        thread = threading.Thread(target=write)
        thread.start()
        while thread.is_alive():
            seen.add(files.status("policy.yaml").state)
            await asyncio.sleep(0.001)
        await until(lambda: len(files.put) > 1)
        await rounds(files)
        assert [new.policy for new in files.put[1:]] == [
            NetworkPolicy.parse(
                {"mode": "custom", "denied_cidrs": ["198.51.100.0/24", "203.0.113.0/24", "0.0.0.0/0"]}
            )
        ]
        assert "being_written" in seen
        assert [outcome for _, outcome, _ in files.unhappy() if outcome is Outcome.REFUSED] == []


async def test_a_writer_that_never_ends_is_shown_and_nothing_else(path: Path) -> None:
    async with watching(Files(path, poll=0.01, awatch=no_events)) as files:
        with path.open("w") as stream:
            stream.write(OPEN)
            stream.flush()
            await until(lambda: files.status("policy.yaml").state == "being_written")
            await rounds(files, 60)
            assert files.status("policy.yaml").state == "being_written"
            assert files.policy() == "deny-all"
        await until(lambda: files.policy() == "allow-all")
