"""Boxes made by the root of a container: a user namespace with ids of its own, none of them the host's."""

import os
from pathlib import Path

import pytest

from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces import launcher as launcher_module
from tests.sandbox.boxes import new_box, shell

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can map ranges of ids")

FIRST = 300_000

# A zygote that is root of such a namespace. What it imports it imports as the real root: the other
# might not be allowed to read it.
CONTAINER = """
import sys; sys.path.append(sys.argv[1])
import os, ctypes, encodings.utf_8, encodings.ascii
from box_policy.sandbox.namespaces import network_messages, zygote
from box_policy.sandbox.namespaces.identity import Identity
from box_policy.sandbox.namespaces.user_namespaces import Mapper
mapper = Mapper(Identity({first}, {first}, {count}))
os.unshare(os.CLONE_NEWUSER)
mapper.map_parent()
os.setgroups([]); os.setresgid(0, 0, 0); os.setresuid(0, 0, 0)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which the change of user has cleared
zygote.main()
"""


def as_container(monkeypatch: pytest.MonkeyPatch, first: int, count: int) -> NamespaceLauncher:
    monkeypatch.setattr(launcher_module, "_ZYGOTE_CODE", CONTAINER.format(first=first, count=count))
    return NamespaceLauncher()


async def test_a_box_has_ids_that_the_containers_users_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = as_container(monkeypatch, FIRST, 65_536)
    try:
        async with new_box(launcher) as box:
            assert (await shell(box, "cat /proc/self/uid_map")).output.split() == ["0", "1", "32765"]
            assert (
                await shell(box, "touch /tmp/f && chown 1000:1000 /tmp/f && stat -c %u /tmp/f")
            ).output == ("1000\n")
    finally:
        await launcher.close()


async def test_with_a_work_directory_the_box_is_its_owner(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    os.chown(work, FIRST, FIRST)
    launcher = as_container(monkeypatch, FIRST, 65_536)
    try:
        async with new_box(launcher, BoxSpec("x", workdir=work)) as box:
            assert (await shell(box, "touch made && stat -c %u made")).output == "0\n"
        assert (work / "made").stat().st_uid == FIRST
    finally:
        await launcher.close()


async def test_a_namespace_whose_root_is_the_real_one_makes_no_box(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = as_container(monkeypatch, 0, 1)
    try:
        with pytest.raises(SandboxError, match="no safe user id for a box"):
            await launcher.create(BoxSpec("x"))
    finally:
        await launcher.close()
