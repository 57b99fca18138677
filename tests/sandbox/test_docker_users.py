"""Whom an image's USER stands for."""

import os
from pathlib import Path

import pytest

from box_policy.sandbox.docker.users import Account, find_account, read_table
from box_policy.sandbox.launcher import SandboxError

PASSWD = """root:x:0:0:root:/root:/bin/sh
app:x:1000:1001:,,,:/home/app:/bin/sh
7:x:70:70::/seven:/bin/sh
app:x:5:5::/second:/bin/sh
homeless:x:80:80:::/bin/sh
bad:x:-1:0::/:/bin/sh
bad2:x:99999999999:0::/:/bin/sh
short:x:1
:x:66:66::/nameless:/bin/sh
"""
GROUP = """root:x:0:
wheel:x:10:root,app
app:x:1001:
staff:x:50:other,app
more:x:60:apps
bad:x:x:app
"""


@pytest.mark.parametrize(
    ("name", "account"),
    [
        ("", Account("root", 0, 0, (0, 10), "/root")),
        ("root", Account("root", 0, 0, (0, 10), "/root")),
        ("0", Account("root", 0, 0, (0, 10), "/root")),
        ("0:0", Account("root", 0, 0, (0,), "/root")),
        ("app", Account("app", 1000, 1001, (1001, 10, 50), "/home/app")),
        ("1000", Account("app", 1000, 1001, (1001, 10, 50), "/home/app")),
        ("app:", Account("app", 1000, 1001, (1001, 10, 50), "/home/app")),
        ("app:staff", Account("app", 1000, 50, (50,), "/home/app")),
        ("app:123", Account("app", 1000, 123, (123,), "/home/app")),
        ("1234", Account("1234", 1234, 0, (0,), "/")),
        ("1234:5678", Account("1234", 1234, 5678, (5678,), "/")),
        (":staff", Account("root", 0, 50, (50,), "/root")),
        ("7", Account("7", 70, 70, (70,), "/seven")),
        ("homeless", Account("homeless", 80, 80, (80,), "/")),
        ("2147483647", Account("2147483647", 2147483647, 0, (0,), "/")),
    ],
)
def test_who_it_is(name: str, account: Account) -> None:
    assert find_account(name, PASSWD, GROUP) == account


@pytest.mark.parametrize(
    "name",
    [
        "nobody",
        "-1",
        "+1",
        "1.0",
        " 1",
        "bad",
        "bad2",
        "2147483648",
        "4294967295",
        "99999999999",
        "٣",
        "a:b:c",
    ],
)
def test_who_nobody_is(name: str) -> None:
    with pytest.raises(SandboxError, match="is not in its /etc/passwd"):
        find_account(name, PASSWD, GROUP)


@pytest.mark.parametrize("name", ["app:none", "0:-1", "0:bad", "0:1:2"])
def test_groups_that_are_none(name: str) -> None:
    with pytest.raises(SandboxError, match="is not in its /etc/group"):
        find_account(name, PASSWD, GROUP)


def test_an_image_without_users() -> None:
    assert find_account("", "", "") == Account("0", 0, 0, (0,), "/")


def test_a_table_that_is_none(tmp_path: Path) -> None:
    assert read_table(str(tmp_path / "absent")) == ""
    (tmp_path / "large").write_bytes(b"x" * (1 << 20) + b"x")
    os.mkfifo(tmp_path / "pipe")
    for name in ("large", "pipe"):
        with pytest.raises(SandboxError, match=str(tmp_path / name)):
            read_table(str(tmp_path / name))
    (tmp_path / "odd").write_bytes(b"\xff:x:1:1::/:/bin/sh")
    assert read_table(str(tmp_path / "odd")) == "\udcff:x:1:1::/:/bin/sh"
