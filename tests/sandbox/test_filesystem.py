"""A box's file system: programs of the host's, nothing of its users, and nothing that outlives the box."""

import os
import socket
from pathlib import Path

import pytest

from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces.box import NamespaceBox
from tests.sandbox.boxes import box_python, new_box, python, run, shell
from tests.sandbox.conftest import NOBODY

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/shadow",
        "/etc/sudoers",
        "/etc/ssh",
        "/etc/krb5.keytab",
        "/etc/machine-id",
        "/root",
        "/run",
        "/sys",
        "/var/run",
        "/var/lib",
        "/var/run/docker.sock",
        "/srv",
        "/mnt",
        "/boot",
        "/.stage",
    ],
)
async def test_what_is_not_there(box: NamespaceBox, path: str) -> None:
    assert (await shell(box, f"test -e {path} -o -L {path}")).status == 1


async def test_the_top_level_is_complete(box: NamespaceBox) -> None:
    names = set((await shell(box, "ls -A /")).output.split())
    assert names <= {
        *("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "opt"),
        *("dev", "etc", "home", "proc", "tmp", "var", "workspace"),
    }


async def test_there_is_no_home_but_the_boxs(box: NamespaceBox) -> None:
    assert (await shell(box, "ls -A /home; ls -A /home/box")).output == "box\n"


async def test_programs_of_the_host_run(box: NamespaceBox) -> None:
    assert (await python(box, "import ssl; print(6 * 7)")).output == "42\n"


async def test_links_of_the_top_level_are_kept(box: NamespaceBox) -> None:
    for name in ("bin", "sbin", "lib"):
        path = Path("/") / name
        if path.is_symlink():
            assert (await run(box, "readlink", str(path))).output.strip() == str(path.readlink())


@pytest.mark.parametrize(
    "path", ["/x", "/usr/x", "/usr/bin/x", "/opt/x", "/etc/x", "/dev/x", "/var/x", "/home/x"]
)
async def test_what_cannot_be_written(box: NamespaceBox, path: str) -> None:
    outcome = await shell(box, f"touch {path}")
    assert outcome.status == 1
    assert "Read-only file system" in outcome.output or "No such file" in outcome.output


@pytest.mark.parametrize("directory", ["/workspace", "/tmp", "/var/tmp", "/home/box", "/dev/shm"])
async def test_what_can_be_written(box: NamespaceBox, directory: str) -> None:
    written = await shell(box, f"echo text > {directory}/f && cat {directory}/f && rm {directory}/f")
    assert written.output == "text\n"


async def test_tmp_is_everyones(box: NamespaceBox) -> None:
    assert (await shell(box, "stat -c %a /tmp /var/tmp /dev/shm")).output.split() == ["1777"] * 3


async def test_writable_directories_have_a_bound_together(launcher: NamespaceLauncher) -> None:
    async with new_box(launcher, BoxSpec("small", scratch_bytes=1 << 20)) as box:
        half = "dd if=/dev/zero bs=1024 count=700 of="
        assert (await shell(box, f"{half}/tmp/a 2>/dev/null")).status == 0
        assert "No space left" in (await shell(box, f"{half}/workspace/a")).output


async def test_names_and_files_of_its_own(launcher: NamespaceLauncher) -> None:
    async with new_box(launcher, BoxSpec("named", hostname="my-box")) as box:
        assert (await shell(box, "hostname")).output == "my-box\n"
        assert (await shell(box, "cat /etc/hostname")).output == "my-box\n"
        assert "10.0.2.15 my-box" in (await shell(box, "cat /etc/hosts")).output
        assert (await shell(box, "cat /etc/resolv.conf")).output == "nameserver 10.0.2.3\n"
        assert (await shell(box, "id -un; echo ~")).output == "root\n/home/box\n"


async def test_certificates_are_there(box: NamespaceBox) -> None:
    if not Path("/etc/ssl/certs/ca-certificates.crt").exists():
        pytest.skip("this machine keeps its certificates elsewhere")
    count = "import ssl; print(len(ssl.create_default_context().get_ca_certs()) > 10)"
    assert (await python(box, count)).output == "True\n"


async def test_private_keys_are_not(box: NamespaceBox) -> None:
    assert (await shell(box, "ls -A /etc/ssl/private 2>/dev/null")).output == ""


@pytest.mark.parametrize(
    "device", ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd", "stdin"]
)
async def test_devices(box: NamespaceBox, device: str) -> None:
    assert (await shell(box, f"test -e /dev/{device} -o -L /dev/{device}")).status == 0


async def test_there_are_no_other_devices(box: NamespaceBox) -> None:
    names = set((await shell(box, "ls /dev")).output.split())
    assert names == {
        *("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm"),
        *("fd", "stdin", "stdout", "stderr"),
    }


async def test_a_workdir_is_written_as_its_owner(
    launcher: NamespaceLauncher, owned_directory: Path, user: str
) -> None:
    (owned_directory / "given").write_text("from the host")
    os.chown(owned_directory / "given", *([NOBODY] * 2 if user == "nobody" else [os.getuid(), os.getgid()]))
    async with new_box(launcher, BoxSpec("work", workdir=owned_directory)) as box:
        assert (
            await shell(box, "pwd; cat given; stat -c %u . given")
        ).output == "/workspace\nfrom the host0\n0\n"
        assert (await shell(box, "echo made > made; mkdir sub; echo changed > given")).status == 0
    owner = owned_directory.stat()
    for name in ("made", "sub", "given"):
        status = (owned_directory / name).stat()
        assert (status.st_uid, status.st_gid) == (owner.st_uid, owner.st_gid)
    assert (owned_directory / "given").read_text() == "changed\n"


async def test_a_workdirs_files_of_other_owners_stay_theirs(
    launcher: NamespaceLauncher, owned_directory: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a file of another owner")
    foreign = owned_directory / "foreign"
    foreign.write_text("theirs")
    os.chown(foreign, 12345, 12345)
    foreign.chmod(0o644)
    async with new_box(launcher, BoxSpec("work", workdir=owned_directory)) as box:
        assert (await shell(box, "cat foreign")).output == "theirs"
        assert (await shell(box, "echo mine > foreign")).status != 0
        assert (await shell(box, "chown 0:0 foreign")).status != 0
    assert foreign.read_text() == "theirs"


@pytest.mark.parametrize(
    "command",
    [
        "chmod u+s f",
        "chmod g+s f",
        "chmod 4755 f",
        "install -m 4755 /bin/true g",
        "mkdir -m 2755 d",
        "python3 -c 'import os; os.open(\"n\", os.O_CREAT | os.O_WRONLY, 0o4755)'",
        "python3 -c 'import os; os.mknod(\"n\", 0o104755)'",
        "python3 -c 'import os; os.fchmod(os.open(\"f\", os.O_RDONLY), 0o4755)'",
    ],
)
async def test_no_set_uid_file_is_left_in_a_workdir(
    launcher: NamespaceLauncher, owned_directory: Path, command: str
) -> None:
    box_python()
    async with new_box(launcher, BoxSpec("work", workdir=owned_directory)) as box:
        outcome = await shell(box, f"touch f; umask 0; {command}")
    assert outcome.status != 0
    assert not [path for path in owned_directory.rglob("*") if path.stat().st_mode & 0o6000]


async def test_an_existing_set_uid_file_loses_its_bit_when_written(
    launcher: NamespaceLauncher, owned_directory: Path, user: str
) -> None:
    victim = owned_directory / "victim"
    victim.write_text("trusted")
    os.chown(victim, *([NOBODY] * 2 if user == "nobody" else [os.getuid(), os.getgid()]))
    victim.chmod(0o4755)
    async with new_box(launcher, BoxSpec("work", workdir=owned_directory)) as box:
        await shell(box, "echo evil > victim")
    assert (victim.read_text(), victim.stat().st_mode & 0o6000) in (("trusted", 0o4000), ("evil\n", 0))


async def test_a_workdir_carries_no_devices_and_no_set_uid(
    launcher: NamespaceLauncher, owned_directory: Path
) -> None:
    async with new_box(launcher, BoxSpec("work", workdir=owned_directory)) as box:
        line = (await shell(box, "grep ' /workspace ' /proc/self/mounts")).output
    assert {"nosuid", "nodev"} <= set(line.split()[3].split(","))


async def test_a_workdir_named_by_a_link_is_the_directory_behind_it(
    launcher: NamespaceLauncher, owned_directory: Path
) -> None:
    (owned_directory / "f").write_text("behind")
    (owned_directory / "f").chmod(0o644)
    link = owned_directory.parent / "link"
    link.symlink_to(owned_directory)
    async with new_box(launcher, BoxSpec("work", workdir=link)) as box:
        assert (await shell(box, "cat f")).output == "behind"


async def test_a_missing_workdir_is_named(launcher: NamespaceLauncher, owned_directory: Path) -> None:
    with pytest.raises(SandboxError, match=r"work directory .*/absent: No such file or directory"):
        await launcher.create(BoxSpec("work", workdir=owned_directory / "absent"))


async def test_a_workdir_must_be_a_directory(launcher: NamespaceLauncher, owned_directory: Path) -> None:
    (owned_directory / "file").write_text("")
    with pytest.raises(SandboxError, match="Not a directory"):
        await launcher.create(BoxSpec("work", workdir=owned_directory / "file"))


async def test_read_only_directories_are_at_their_own_paths(
    launcher: NamespaceLauncher, owned_directory: Path
) -> None:
    (owned_directory / "tool").write_text("usable")
    (owned_directory / "tool").chmod(0o644)
    (owned_directory.parent / "secret").write_text("beside it")
    async with new_box(launcher, BoxSpec("tools", read_only=[owned_directory])) as box:
        assert (await shell(box, f"cat {owned_directory}/tool")).output == "usable"
        assert (await shell(box, f"echo x > {owned_directory}/tool")).status != 0
        assert (await shell(box, f"touch {owned_directory}/new")).status != 0
        assert (await shell(box, f"ls -A {owned_directory.parent}")).output == "owned\n"
    assert (owned_directory / "tool").read_text() == "usable"


@pytest.mark.parametrize(
    "path", ["/", "/proc", "/etc", "/dev/shm", "/run/x", "/tmp", "/workspace/x", "/absent"]
)
async def test_paths_that_cannot_be_shown(launcher: NamespaceLauncher, path: str) -> None:
    with pytest.raises(SandboxError, match="can't be shown in a box"):
        await launcher.create(BoxSpec("tools", read_only=[Path(path)]))


async def test_credentials_of_package_managers_are_covered(
    launcher: NamespaceLauncher, owned_directory: Path
) -> None:
    (owned_directory / "pip.conf").write_text("[global]\nindex-url = https://user:pass@mirror.test/simple\n")
    (owned_directory / "pip.conf").chmod(0o644)
    async with new_box(launcher, BoxSpec("tools", read_only=[owned_directory])) as box:
        assert (await shell(box, f"cat {owned_directory}/pip.conf")).output == ""


async def test_a_hosts_unix_socket_leads_nowhere(launcher: NamespaceLauncher, owned_directory: Path) -> None:
    # A read-only bind mount would not prevent this: connect() is no write to the file system.
    path = owned_directory / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0o777)
        async with new_box(launcher, BoxSpec("tools", read_only=[owned_directory])) as box:
            connect = "import socket, sys; print(socket.socket(socket.AF_UNIX).connect_ex(sys.argv[1]))"
            assert (await python(box, connect, str(path))).output == "111\n"


async def test_a_hosts_fifo_leads_nowhere(launcher: NamespaceLauncher, owned_directory: Path) -> None:
    path = owned_directory / "fifo"
    os.mkfifo(path)
    path.chmod(0o666)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        async with new_box(launcher, BoxSpec("tools", read_only=[owned_directory])) as box:
            write = "import os, sys; os.write(os.open(sys.argv[1], os.O_RDWR | os.O_NONBLOCK), b'out')"
            await python(box, write, str(path))
        assert os.read(reader, 10) == b""
    finally:
        os.close(reader)


async def test_mounts_name_no_place_of_the_host(box: NamespaceBox) -> None:
    mounts = (await shell(box, "cat /proc/self/mounts")).output
    assert str(Path.cwd()) not in mounts
    assert "/home/" not in mounts.replace("/home/box", "")


async def test_directories_that_are_asked_for(launcher: NamespaceLauncher) -> None:
    directories = ["/workspace/home", "/tmp/a/b"]
    async with new_box(launcher, BoxSpec("directories", directories=directories)) as box:
        made = await run(box, "stat", "-c", "%n %u:%g %a", *directories, "/tmp/a")
    assert made.output.splitlines() == [
        "/workspace/home 0:0 755",
        "/tmp/a/b 0:0 755",
        "/tmp/a 0:0 755",
    ]


@pytest.mark.parametrize("path", ["/etc/x", "/workspace", "/tmp/../etc/x", "tmp/x", "/tmp/", "/tmpx/y"])
async def test_directories_elsewhere_are_not_made(launcher: NamespaceLauncher, path: str) -> None:
    with pytest.raises(SandboxError, match="can't be made in a box"):
        await launcher.create(BoxSpec("directories", directories=[path]))


async def test_nor_in_a_directory_of_the_host_s(launcher: NamespaceLauncher, owned_directory: Path) -> None:
    spec = BoxSpec("directories", workdir=owned_directory, directories=["/workspace/home"])
    with pytest.raises(SandboxError, match="can't be made in a box"):
        await launcher.create(spec)
    assert list(owned_directory.iterdir()) == []
