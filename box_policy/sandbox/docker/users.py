"""Who an image's programs run as: its USER, looked up in the image's own /etc/passwd and /etc/group.

Not with the C library, which would load what the image's nsswitch.conf names into pid 1.
"""

import os
import stat
from dataclasses import dataclass

from box_policy.sandbox.launcher import SandboxError

_LARGEST_FILE = 1 << 20
_LARGEST_ID = (1 << 31) - 1
_ID_DIGITS = 10
_PASSWD_FIELDS = 7
_GROUP_FIELDS = 4


@dataclass(frozen=True, slots=True)
class Account:
    """A user, as setresuid(2) and its like take one."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str

    def become(self) -> None:
        """Make this process that user's."""
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


def read_table(path: str) -> str:
    """A file of the image's; empty if there is none. SandboxError if it is no regular file, or too large."""
    try:
        # An image may have a FIFO or a device there.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SandboxError(f"the image's {path} is no file")
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise SandboxError(f"the image's {path} is larger than {_LARGEST_FILE} bytes")
    return content.decode("utf-8", "surrogateescape")


def find_account(user: str, passwd: str, group: str) -> Account:
    """The account that USER stands for: empty (root), "name", "uid", "uid:gid", "name:group".

    As Docker does it: a name goes before a number; a user that isn't listed has group 0 and home "/"; and
    further groups only where none is given. SandboxError for a name that isn't listed.
    """
    wanted, has_group, wanted_group = user.partition(":")
    wanted = wanted or "0"
    users = [fields for fields in _rows(passwd, _PASSWD_FIELDS) if _number(fields[2]) is not None]
    found = next((fields for fields in users if fields[0] == wanted), None)
    uid = _number(wanted if found is None else found[2])
    if uid is None:
        raise SandboxError(f"the image's user {wanted!r} is not in its /etc/passwd")
    if found is None:
        found = next((fields for fields in users if _number(fields[2]) == uid), None)
    name = "" if found is None else found[0]
    home = "/" if found is None or not found[5].startswith("/") else found[5]
    own_gid = 0 if found is None else _number(found[3]) or 0
    if not (has_group and wanted_group):
        groups = [
            _number(row[2]) for row in _rows(group, _GROUP_FIELDS) if name in row[3].split(",") and name
        ]
        return Account(name or str(uid), uid, own_gid, _unique(own_gid, *groups), home)
    gid = _find_group(wanted_group, group)
    return Account(name or str(uid), uid, gid, (gid,), home)


def _find_group(wanted: str, group: str) -> int:
    found = next((row[2] for row in _rows(group, _GROUP_FIELDS) if row[0] == wanted), wanted)
    gid = _number(found)
    if gid is None:
        raise SandboxError(f"the image's group {wanted!r} is not in its /etc/group")
    return gid


def _unique(*numbers: int | None) -> tuple[int, ...]:
    return tuple(dict.fromkeys(number for number in numbers if number is not None))


def _rows(text: str, fields: int) -> list[list[str]]:
    rows = (line.split(":") for line in text.split("\n"))
    return [row for row in rows if len(row) == fields]


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > _ID_DIGITS:
        return None
    number = int(text)
    return number if number <= _LARGEST_ID else None
