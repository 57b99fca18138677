"""Users and groups whose files are as good as ours."""

import grp
import os
import pwd
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

_ALL_IDS: Final = 2**32 - 1

_PASSWD: Final = Path("/etc/passwd")
_GROUP: Final = Path("/etc/group")


def is_trusted(uid: int) -> bool:
    """Whether what a user owns is as good as ours: root, and whom we run as."""
    return uid in (0, os.geteuid()) and not is_unmapped(uid)


def user(uid: int) -> str:
    """A user, as messages call him."""
    if is_unmapped(uid):
        return f"user {uid}, (every user that this user namespace doesn't map)"
    return f"user {uid}"


def is_unmapped(uid: int) -> bool:
    """Whether the id is the one that a user namespace shows for owners that it doesn't map
    (user_namespaces(7)): anybody's."""
    if uid != _overflow_uid():
        return False
    try:
        return not _maps_all_ids("uid_map")
    except (OSError, ValueError):
        return True


def _maps_all_ids(which: str) -> bool:
    ranges = [line.split() for line in Path("/proc/self", which).read_text().splitlines()]
    return sum(int(count) for _, _, count in ranges) >= _ALL_IDS


@cache
def _overflow_uid() -> int:
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return 65534  # the kernel's default


def is_private_group(gid: int, owner: int) -> bool:
    """Whether a group is its owner's alone, as most distributions make one for each user: nobody else can
    do what it may."""
    if owner != os.geteuid() and gid in (os.getegid(), *os.getgroups()):
        return False  # we are in it
    # A gate runs for long, and users come.
    return _is_private_group(gid, owner, _changed(_PASSWD), _changed(_GROUP))


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=64)
def _is_private_group(gid: int, owner: int, *_: int) -> bool:
    try:
        if not _maps_all_ids("gid_map"):
            return False  # then whom the group consists of outside can't be told
        names, primary = ({"root"}, 0) if owner == 0 else _name_and_group(owner)
        if gid != primary:
            return False
        # From the file: to go through a directory service's users may take minutes.
        for line in _PASSWD.read_text(errors="surrogateescape").splitlines():
            name, _password, uid, group = line.split(":")[:4]
            if int(uid) == owner:
                names.add(name)
            elif int(group) == gid:
                return False
        return names.issuperset(grp.getgrgid(gid).gr_mem)
    except (OSError, ValueError, LookupError):
        return False


def _name_and_group(uid: int) -> tuple[set[str], int]:
    entry = pwd.getpwuid(uid)
    return {entry.pw_name}, entry.pw_gid
