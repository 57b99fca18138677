"""Looking at files, here and in processes of their own."""

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from box_policy.control.files.trusted_file import Look, Refused, Sample, Whole, look
from box_policy.control.files.trusted_path import Trail
from box_policy.policy.document import MAX_BYTES


def look_at(path: Path, *, known: Collection[bytes] = (), sample: Sample | None = None) -> Look:
    return look(path, max_bytes=MAX_BYTES, known=known, sample=sample, trail=Trail())


def whole(path: Path) -> Whole:
    found = look_at(path)
    assert isinstance(found, Whole)
    return found


def refusal(path: Path) -> str:
    found = look_at(path)
    assert isinstance(found, Refused), found
    return found.why


def in_child(code: str, *arguments: object) -> str:
    """Run code in a process of its own; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=20,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode == 77:
        pytest.skip(f"this machine has no user namespaces for us: {done.stdout}")
    assert done.returncode == 0, f"{done.returncode}: {done.stderr}"
    return done.stdout


USER_NAMESPACE = """
import os, subprocess, sys
from pathlib import Path
uid, gid = os.geteuid(), os.getegid()
try:
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
except OSError as error:
    print(error)
    sys.exit(77)
"""
"""Code that goes on in a user namespace and a mount namespace of its own."""

IN_USER_NAMESPACE = (
    USER_NAMESPACE
    + """
from box_policy.control.files.trusted_file import look
from box_policy.control.files.trusted_path import Trail
path = Path(sys.argv[1])
def see(): print(look(path, max_bytes=100, trail=Trail()))
"""
)
"""The same, to look at files there."""
