"""Whom a policy file is taken from: nobody but its owner and root may be able to bend the way to it."""

import grp
import os
import pwd
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest

from box_policy.control.files import owners
from tests.control.reading import IN_USER_NAMESPACE, in_child, refusal, whole

STRANGER = 4711


def give_away(path: Path) -> None:
    try:
        os.lchown(path, STRANGER, STRANGER)
    except OSError as error:  # in a user namespace: there is no such user
        pytest.skip(f"only root can give files away: {error.strerror}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    path = tmp_path / "policy.yaml"
    path.write_text("mode: deny-all\n")
    path.chmod(0o644)
    return path


@pytest.fixture
def shared_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The group of whatever a test makes is not its owner's alone."""
    monkeypatch.setattr("box_policy.control.files.trusted_path.is_private_group", lambda *_: False)


@pytest.mark.usefixtures("shared_group")
@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620])
def test_a_file_that_others_can_write_to_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    assert f"chmod go-w {path}" in refusal(path)


@pytest.mark.usefixtures("shared_group")
@pytest.mark.parametrize("mode", [0o777, 0o757, 0o775])
def test_so_is_one_in_a_directory_that_others_can_write_to(path: Path, mode: int) -> None:
    path.parent.chmod(mode)
    assert f"chmod go-w {path.parent}" in refusal(path)


def test_a_sticky_directory_is_no_danger_to_what_is_ours(path: Path) -> None:
    path.parent.chmod(0o1777)
    whole(path)
    link = path.with_name("link.yaml")
    link.symlink_to(path.name)
    whole(link)


def test_but_anybody_can_make_a_link_in_it(path: Path) -> None:
    """To a policy that root has somewhere, and that allows more."""
    path.parent.chmod(0o1777)
    link = path.with_name("link.yaml")
    link.symlink_to(path.name)
    give_away(link)
    assert f"belongs to user {STRANGER}" in refusal(link)


@pytest.mark.usefixtures("shared_group")
@pytest.mark.parametrize("change", [0o777, 0o775, "given away"])
@pytest.mark.parametrize("holder", ["of the link", "of the file", "above"])
def test_every_directory_on_the_way_counts(path: Path, holder: str, change: int | str) -> None:
    one, other = path.parent / "one", path.parent / "two"
    inner = other / "inner"
    one.mkdir(mode=0o755)
    inner.mkdir(mode=0o755, parents=True)
    path.rename(inner / "policy.yaml")
    link = one / "link.yaml"
    link.symlink_to("../two/inner/policy.yaml")
    whole(link)
    changed = {"of the link": one, "of the file": inner, "above": other}[holder]
    if isinstance(change, int):
        changed.chmod(change)
        assert refusal(link).endswith(
            f"can write to the directory {changed}, and so replace the file: chmod go-w {changed}"
        )
    else:
        give_away(changed)
        assert f"the directory {changed} belongs to user {STRANGER}" in refusal(link)
        assert refusal(link).endswith(f": chown root {changed}")


def test_all_that_has_to_be_mended_is_said_at_once(path: Path) -> None:
    inner = path.parent / "a b"
    inner.mkdir()
    path = path.rename(inner / path.name)
    for each in (path, inner, inner.parent):
        each.chmod(0o777)
    give_away(inner)
    assert refusal(path) == (
        f"others can write to the directory {inner.parent}, and so replace the file; "
        f"the directory {inner} belongs to user {STRANGER}; it has to be root's or user {os.geteuid()}'s; "
        f"others can write to the directory {inner}, and so replace the file; "
        "others can write to it: "
        f"chown root '{inner}' && chmod go-w {inner.parent} '{inner}' '{path}'"
    )


def test_what_a_stranger_may_have_put_there_is_not_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To open a device can do something."""
    path.parent.chmod(0o777)
    opened: list[int] = []
    real = os.open

    def record(name: str, flags: int, **options: int) -> int:
        opened.append(flags)
        return real(name, flags, **options)

    monkeypatch.setattr(os, "open", record)
    refusal(path)
    assert all(flags & os.O_PATH for flags in opened)


@pytest.mark.parametrize("name", ["/proc/self/comm", "/sys/kernel/notes", "/sys/power/state"])
def test_what_the_kernel_makes_up_is_no_policy(name: str) -> None:
    """A program's name is what its user gave it, also where the file is root's: that of a setuid program."""
    try:
        Path(name).read_bytes()
    except OSError:
        pytest.skip("there is no such file here, for us")
    if owners.is_unmapped(Path(name).stat().st_uid):
        pytest.skip("it belongs to a user whom this user namespace doesn't map, which is said first")
    assert "one of the kernel's" in refusal(Path(name))


# Groups of one


def test_a_group_that_is_its_owners_alone_is_no_danger(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def private(gid: int, owner: int) -> bool:
        asked.append((gid, owner))
        return True

    monkeypatch.setattr("box_policy.control.files.trusted_path.is_private_group", private)
    path.chmod(0o664)
    path.parent.chmod(0o2775)
    whole(path)
    assert set(asked) == {(path.stat().st_gid, path.stat().st_uid)}
    path.chmod(0o666)
    assert "others can write to it" in refusal(path)


ACCESS_LIST = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, who)
    for tag, permissions, who in (
        (0x01, 6, 2**32 - 1),  # the owner
        (0x02, 6, STRANGER),
        (0x04, 4, 2**32 - 1),  # the group
        (0x10, 6, 2**32 - 1),  # the most that these may do, shown as the group's
        (0x20, 4, 2**32 - 1),  # others
    )
)


@pytest.mark.parametrize("which", ["file", "directory"])
def test_unless_an_access_list_names_others(path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """The group's bits are then the most that any of them may do."""
    monkeypatch.setattr("box_policy.control.files.trusted_path.is_private_group", lambda *_: True)
    target = path if which == "file" else path.parent
    try:
        os.setxattr(target, "system.posix_acl_access", ACCESS_LIST)
    except OSError:
        pytest.skip("this file system has no access lists")
    assert target.stat().st_mode & 0o020
    assert f"chmod go-w {target}" in refusal(path)


USERS = (
    "root:x:0:0::/:/bin/sh\nann:x:1000:1000::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\nann2:x:1000:1000::/:\n"
)


@pytest.mark.parametrize(
    ("owner", "gid", "more", "members", "private"),
    [
        (1000, 1000, "", [], True),
        (1000, 1000, "", ["ann", "ann2"], True),
        (0, 0, "", ["root"], True),
        (1000, 1000, "", ["bob"], False),
        (0, 0, "", ["bob"], False),
        (1000, 1001, "", [], False),
        (1000, 50, "", [], False),
        (1000, 1000, "eve:x:1002:1000::/:/bin/sh\n", [], False),
        (1003, 1003, "", [], False),
        (1000, 1000, "+::::::\n", [], False),
        (1000, 1000, "nonsense\n", [], False),
    ],
)
def test_which_groups_are(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: int,
    gid: int,
    more: str,
    members: list[str],
    private: bool,
) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_text(USERS + more)
    names = {1000: "ann"}

    def user(uid: int) -> object:
        return SimpleNamespace(pw_name=names[uid], pw_gid=uid)

    monkeypatch.setattr(owners, "_maps_all_ids", lambda _: True)
    monkeypatch.setattr(owners, "_PASSWD", passwd)
    monkeypatch.setattr(os, "geteuid", lambda: owner)
    monkeypatch.setattr(pwd, "getpwuid", user)
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_mem=members))
    owners._is_private_group.cache_clear()
    assert owners.is_private_group(gid, owner) == private
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(os, "getgroups", lambda: [gid])
    assert not owners.is_private_group(gid, owner), "we are in it"


def test_a_group_that_gets_a_member_is_none_any_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members: list[str] = []
    group = tmp_path / "group"
    group.touch()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(owners, "_maps_all_ids", lambda _: True)
    monkeypatch.setattr(owners, "_GROUP", group)
    monkeypatch.setattr(owners, "_PASSWD", tmp_path / "passwd")
    (tmp_path / "passwd").write_text(USERS)
    monkeypatch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_mem=members))
    owners._is_private_group.cache_clear()
    assert owners.is_private_group(0, 0)
    members.append("bob")
    os.utime(group, (1, 1))
    assert not owners.is_private_group(0, 0)


def test_in_a_user_namespace_no_group_is_known(path: Path) -> None:
    """What is the user's own there may be everybody's outside."""
    path.chmod(0o664)
    assert "its group can write to it" in in_child(IN_USER_NAMESPACE + "see()", path)


def test_a_strangers_file_is_refused(path: Path) -> None:
    give_away(path)
    assert f"belongs to user {STRANGER}; it has to be root's or user" in refusal(path)


def test_an_owner_whom_the_user_namespace_does_not_know_is_refused(path: Path) -> None:
    if os.geteuid() == 0:
        give_away(path)
    else:
        path = Path("/etc/passwd")
    assert "that this user namespace doesn't map" in in_child(IN_USER_NAMESPACE + "see()", path)


STRANGERS_DIRECTORY = """
path.parent.chmod({mode})
(path.parent / "sub").mkdir(mode=0o755)
path = path.rename(path.parent / "sub" / path.name)
os.chmod(path.parent, {inner})
os.chown(path.parent, 4711, 4711)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
@pytest.mark.parametrize(
    ("mode", "inner", "trusted"),
    [(0o755, 0o755, True), (0o1777, 0o755, False), (0o755, 0o775, False), (0o755, 0o757, False)],
)
def test_but_directories_may_be_the_hosts(path: Path, mode: int, inner: int, trusted: bool) -> None:
    """Those above what is mounted into a container of a user's own. Not where anybody could have made one."""
    before = STRANGERS_DIRECTORY.format(mode=mode, inner=inner)
    code = "import os, sys; from pathlib import Path; path = Path(sys.argv[1])" + before + IN_USER_NAMESPACE
    seen = in_child(code + "path = path.parent / 'sub' / path.name; see()", path)
    assert seen.startswith("Whole" if trusted else "Refused"), seen


def test_nor_does_a_reader_trust_itself_whom_it_does_not_know(path: Path) -> None:
    """Then its own id is the one that stands for everybody."""
    code = IN_USER_NAMESPACE.replace('write_text(f"0 {uid} 1")', "read_text()").replace(
        'write_text(f"0 {gid} 1")', "read_text()"
    )
    path.chmod(0o644)
    assert "that this user namespace doesn't map" in in_child(code + "see()", path)


def test_a_mount_that_cannot_be_written_to_is_no_danger_whatever_its_mode(tmp_path: Path) -> None:
    """As a ConfigMap's: its directories are 0777."""
    code = """
mount = lambda *arguments: subprocess.run(["mount", *arguments], check=True)
mount("-t", "tmpfs", "none", str(path.parent))
path.parent.chmod(0o777)
path.write_text("x")
path.chmod(0o644)
see()
mount("-o", "remount,bind,ro", str(path.parent))
see()
"""
    before, after = in_child(IN_USER_NAMESPACE + code, tmp_path / "policy.yaml").splitlines()
    assert before.startswith("Refused")
    assert after.startswith("Whole")
