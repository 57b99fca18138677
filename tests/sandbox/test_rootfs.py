"""A box with the programs of another system, from a directory; and directories that are none or lie."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces.host_files import survey_etc_of
from tests.sandbox.boxes import new_box, run, shell
from tests.sandbox.conftest import NOBODY

pytestmark = pytest.mark.asyncio(loop_scope="module")


def copy_program(root: Path, program: str) -> None:
    """Copy a program, and the libraries that it needs, to where the same paths lead below ``root``."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for path in {program, *re.findall(r"(/\S+) \(0x", listed)}:
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


@pytest.fixture
def rootfs(owned_directory: Path, user: str) -> Path:
    """The root of a small system: a shell, cat, ls; /bin and /lib as they are on this machine."""
    root = owned_directory / "root"
    root.mkdir()
    for name in ("bin", "lib", "lib64", "sbin"):
        host = Path("/") / name
        if host.is_symlink():
            (root / host.readlink()).mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(host.readlink())
    for program in ("/bin/sh", "/bin/cat", "/bin/ls"):
        copy_program(root, program)
    (root / "etc").mkdir()
    (root / "etc/os-release").write_text("ID=small\n")
    (root / "etc/passwd").write_text("evil:x:0:0::/:/bin/sh\n")
    (root / "opt").mkdir()
    (root / "opt/here").write_text("small\n")
    (root / "root").mkdir()
    (root / "root/file").write_text("not shown\n")
    if user == "nobody":
        for path in (root, *root.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    return root


async def test_its_programs_run_and_the_hosts_are_absent(launcher: NamespaceLauncher, rootfs: Path) -> None:
    async with new_box(launcher, BoxSpec("small", rootfs=rootfs)) as box:
        assert (await shell(box, "echo $((6 * 7)); cat /opt/here")).output == "42\nsmall\n"
        names = set((await run(box, "ls", "/usr/bin")).output.split())
        assert names == {path.name for path in (rootfs / "usr/bin").iterdir()}
        assert (await shell(box, "cat /etc/os-release; cat /etc/hostname")).output == "ID=small\nbox\n"
        assert "evil" not in (await shell(box, "cat /etc/passwd")).output
        assert (await shell(box, "ls /root /etc/ssl")).status != 0
        await box.files.write("/workspace/x", b"written")
        assert (await shell(box, "cat /workspace/x")).output == "written"


async def test_it_is_read_only(launcher: NamespaceLauncher, rootfs: Path) -> None:
    async with new_box(launcher, BoxSpec("small", rootfs=rootfs)) as box:
        for path in ("/usr/bin/x", "/opt/here", "/etc/os-release", "/x"):
            assert "Read-only file system" in (await shell(box, f"echo evil > {path}")).output
    assert (rootfs / "opt/here").read_text() == "small\n"


async def test_the_hosts_own_root(launcher: NamespaceLauncher) -> None:
    async with new_box(launcher, BoxSpec("host", rootfs=Path("/"))) as box:
        assert (await shell(box, "ls / | grep -c root; echo on")).output == "0\non\n"


async def test_host_directories_beside_it(
    launcher: NamespaceLauncher, rootfs: Path, owned_directory: Path
) -> None:
    beside = owned_directory / "beside"
    beside.mkdir()
    (beside / "file").write_text("host\n")
    # Not below the box's own /tmp, where test directories are.
    shown = Path("/var/lib/dpkg") if beside.is_relative_to("/tmp") else beside
    async with new_box(launcher, BoxSpec("small", rootfs=rootfs, read_only=[shown])) as box:
        assert (await run(box, "ls", str(shown))).status == 0
    for inside in ("/usr/share", "/opt", "/bin"):
        with pytest.raises(SandboxError, match="has its own directory there"):
            await launcher.create(BoxSpec("small", rootfs=rootfs, read_only=[Path(inside)]))


async def test_links_out_of_it_show_nothing_of_the_host(
    launcher: NamespaceLauncher, rootfs: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host secret")
    secret.chmod(0o644)
    (rootfs / "opt/here").unlink()
    (rootfs / "opt").rmdir()
    (rootfs / "opt").symlink_to(tmp_path)
    (rootfs / "lib32").symlink_to("../../../../../../../../../../../../" + str(tmp_path))
    (rootfs / "etc/pip.conf").symlink_to(secret)
    (rootfs / "etc/ssl").symlink_to("/etc")
    (rootfs / "etc/fonts").symlink_to(tmp_path)
    (rootfs / "usr/link").symlink_to(secret)
    async with new_box(launcher, BoxSpec("small", rootfs=rootfs)) as box:
        paths = "/opt/secret /lib32/secret /etc/pip.conf /etc/fonts/secret /etc/ssl/shadow /usr/link"
        outcome = await shell(box, f"for p in {paths}; do cat $p && echo shown; done")
        assert "shown" not in outcome.output
        assert "host secret" not in outcome.output


async def test_an_etc_that_is_the_hosts(launcher: NamespaceLauncher, rootfs: Path) -> None:
    shutil.rmtree(rootfs / "etc")
    (rootfs / "etc").symlink_to("/etc")
    async with new_box(launcher, BoxSpec("small", rootfs=rootfs)) as box:
        assert (await shell(box, "cat /etc/os-release")).status != 0
        assert (await shell(box, "cat /etc/hostname")).output == "box\n"


async def test_sockets_and_pipes_in_it_lead_nowhere(launcher: NamespaceLauncher, rootfs: Path) -> None:
    os.mkfifo(rootfs / "etc/npmrc")
    os.mkfifo(rootfs / "lib32")
    async with new_box(launcher, BoxSpec("small", rootfs=rootfs)) as box:
        assert (await shell(box, "ls /lib32 /etc/npmrc")).status != 0


async def test_settings_with_credentials_are_left_out(rootfs: Path) -> None:
    (rootfs / "etc/pip.conf").write_text("[global]\nindex-url = https://user:hunter2@example.org/\n")
    (rootfs / "etc/profile.d").mkdir()
    (rootfs / "etc/profile.d/x.sh").write_text("export API_TOKEN=abc\n")
    found = survey_etc_of(str(rootfs))
    assert found.files == {"/etc/os-release": b"ID=small\n"}
    assert (found.trees, found.masked) == (["/etc/profile.d"], ["/etc/profile.d/x.sh"])


async def test_what_is_no_root(launcher: NamespaceLauncher, rootfs: Path) -> None:
    with pytest.raises(SandboxError, match=r"root file system .*: No such file"):
        await launcher.create(BoxSpec("x", rootfs=rootfs / "absent"))
    with pytest.raises(SandboxError, match="not a directory"):
        await launcher.create(BoxSpec("x", rootfs=rootfs / "etc/os-release"))
    with pytest.raises(SandboxError, match="no /bin/sh in it"):
        await launcher.create(BoxSpec("x", rootfs=rootfs / "etc"))
    (rootfs / "usr/bin/sh").unlink()
    (rootfs / "usr/bin/sh").symlink_to("/nowhere")
    with pytest.raises(SandboxError, match="no /bin/sh in it"):
        await launcher.create(BoxSpec("x", rootfs=rootfs))
