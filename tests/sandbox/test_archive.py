"""Directories of a box as a tar stream, and back into another box."""

import errno
import io
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from box_policy.sandbox.launcher import BoxSpec
from box_policy.sandbox.namespaces import file_archive, file_trees
from box_policy.sandbox.namespaces.file_archive import Archiver
from box_policy.sandbox.namespaces.file_trees import Output
from box_policy.sandbox.namespaces.served_box import ServedBox
from tests.sandbox.boxes import new_box, python, shell
from tests.sandbox.conftest import AnyLauncher

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def archived(box: ServedBox, paths: Sequence[str] = ("/workspace",)) -> bytes:
    async with box.files.archive(paths) as stream:
        return b"".join([piece async for piece in stream])


async def in_pieces(data: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def opened(data: bytes) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape")


MAKE = r"""
cd /workspace
mkdir -p dir/empty closed "$(printf 'odd\377')"
echo hello > dir/file; chmod 640 dir/file; touch -d '2020-02-03 04:05:06' dir/file
ln dir/file hard; ln -s dir/file soft; ln -s /nowhere dangling
head -c 700000 /dev/urandom > big; : > none
printf x > "$(printf 'odd\377')/$(printf 'n\n\303\251')"
long=$(printf 'l%.0s' $(seq 200)); mkdir -p $long/$long; echo deep > $long/$long/file
touch -d '2021-01-01' dir; chmod 500 closed; touch -h -d '2019-01-01' soft
"""
DESCRIBE = """
import hashlib, os, stat
for where, names, files in os.walk('/workspace'):
    names.sort()
    for name in sorted(names + files) + ['.']:
        path = os.path.join(where, name)
        s = os.lstat(path)
        if stat.S_ISLNK(s.st_mode):
            print(ascii(path), 'link', os.readlink(path), s.st_uid)
        else:
            data = hashlib.sha256(open(path, 'rb').read()).hexdigest() if stat.S_ISREG(s.st_mode) else ''
            print(ascii(path), oct(s.st_mode), s.st_uid, s.st_gid, int(s.st_mtime), s.st_nlink, data)
"""


async def test_what_goes_into_one_box_came_out_of_another(launcher: AnyLauncher) -> None:
    async with new_box(launcher) as first, new_box(launcher) as second:
        assert (await shell(first, MAKE)).output == ""
        data = await archived(first)
        await second.files.restore(in_pieces(data))
        expected = (await python(first, DESCRIBE)).output
        assert expected.count("\n") > 15
        assert (await python(second, DESCRIBE)).output == expected
        assert (await shell(second, "cd /workspace; test dir/file -ef hard && echo same")).output == "same\n"


async def test_what_an_archive_is(launcher: AnyLauncher, tmp_path: Path) -> None:
    async with new_box(launcher) as box:
        await shell(box, MAKE)
        data = await archived(box, ["/workspace/dir/", "/workspace/closed"])
        with opened(data) as tar:
            names = tar.getnames()
            assert names == ["workspace/dir", "workspace/dir/file", "workspace/dir/empty", "workspace/closed"]
            member = tar.getmember("workspace/dir/file")
            assert (member.uid, member.gid, member.uname, member.mode) == (0, 0, "", 0o640)
    # Other programs read it.
    listed = subprocess.run(["tar", "-tf", "-"], input=data, capture_output=True, check=True)
    assert listed.stdout.decode().count("\n") == 4
    assert listed.stderr == b""


async def test_what_is_left_out(launcher: AnyLauncher) -> None:
    make = "import os, socket; os.chdir('/workspace'); os.mkfifo('p'); open('f', 'w')\n"
    async with new_box(launcher) as box:
        await python(box, make + "socket.socket(socket.AF_UNIX).bind('s')")
        with opened(await archived(box)) as tar:
            assert tar.getnames() == ["workspace", "workspace/f"]


HOLES = """
import os
os.chdir('/workspace')
for name, size, pieces in (
    ('hole', 3 << 30, []),
    ('huge', 1 << 42, [(1 << 41, b'middle'), ((1 << 42) - 3, b'end')]),
    ('begins', 1 << 30, [(0, b'start')]),
    ('tiny', 5, []),
    ('odd\\udcff', 1 << 30, [(n << 20, b'x' * 5000) for n in range(0, 1000, 9)]),
):
    with open(name, 'wb') as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(size)
os.link('hole', 'hole-again')
"""
SHOW_HOLES = """
import hashlib, os
os.chdir('/workspace')
for name in sorted(os.listdir()):
    fd, end, found = os.open(name, os.O_RDONLY), 0, hashlib.sha256()
    size = os.fstat(fd).st_size
    while True:
        try: start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError: break
        end = os.lseek(fd, start, os.SEEK_HOLE)
        found.update(repr((start, end, os.pread(fd, end - start, start))).encode())
    print(ascii(name), size, os.stat(name).st_blocks, os.stat(name).st_nlink, found.hexdigest())
"""


async def test_holes_come_back_as_holes(launcher: AnyLauncher) -> None:
    small = BoxSpec("small", scratch_bytes=4 << 20)
    async with new_box(launcher, small) as first, new_box(launcher, small) as second:
        assert (await python(first, HOLES)).output == ""
        data = await archived(first)
        assert len(data) < 1 << 20
        await second.files.restore(in_pieces(data))
        expected = (await python(first, SHOW_HOLES)).output
        assert expected.count("\n") == 6
        assert (await python(second, SHOW_HOLES)).output == expected


async def test_other_programs_read_holes(launcher: AnyLauncher, tmp_path: Path) -> None:
    async with new_box(launcher) as box:
        await python(box, HOLES)
        await shell(box, "cd /workspace; rm huge; echo behind > zz")
        subprocess.run(["tar", "-xf", "-", "-C", tmp_path], input=await archived(box), check=True)
    files = tmp_path / "workspace"
    assert (files / "hole").stat().st_size == 3 << 30
    assert (files / "hole").stat().st_blocks == 0
    assert (files / "begins").open("rb").read(8) == b"start\0\0\0"
    assert (files / "zz").read_text() == "behind\n"


async def test_more_than_eight_gibibytes_between_holes(tmp_path: Path) -> None:
    # The header alone: its size is past what the field of plain tar holds.
    stored, whole = 9 << 30, 1 << 40
    status = tmp_path.stat()
    file = os.stat_result((*status[:6], whole, *status[7:]))
    with (tmp_path / "archive").open("w+b", buffering=0) as written:
        Archiver(Output(written.fileno()))._sparse_header("/f", file, [(4096, stored)], stored)
        end = written.tell()
        written.seek(0)
        with tarfile.open(fileobj=written) as tar:
            found = tar.next()
            assert found is not None
            assert (found.name, found.size) == ("f", whole)
            assert repr(found.sparse) == repr([(4096, stored), (whole, 0)])
            assert tar.offset == end + stored


DEEP = """
import os
os.chdir('/workspace')
for n in range(60):
    os.mkdir('d' * 200); os.mkdir('e'); open('file', 'w').write(f'{n}\\n'); os.chdir('d' * 200)
open('file', 'w').close(); os.link('file', 'hard'); os.symlink('nowhere', 'soft'); os.chmod('file', 0o640)
"""


async def test_a_tree_deeper_than_a_path_can_say(launcher: AnyLauncher) -> None:
    show = (
        "cd /workspace; find . -printf '%P %y %m %n %l\\n' | sort;"
        "find . -name file -execdir cat {} + | sort -n"
    )
    async with new_box(launcher) as first, new_box(launcher) as second:
        assert (await python(first, DEEP)).output == ""
        await second.files.restore(in_pieces(await archived(first)))
        expected = (await shell(first, show)).output
        assert expected.count("\n") == (1 + 60 * 3 + 3) + 60
        assert (await shell(second, show)).output == expected


LEASE = """
import fcntl, os, signal, sys, time
os.chdir('/workspace')
held = []
def release(*_):
    for fd in held: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGIO, release)
for n in range(150):
    open(f'leased{n}', 'w').write('text')
    held.append(os.open(f'leased{n}', os.O_RDWR))
    fcntl.fcntl(held[-1], fcntl.F_SETLEASE, fcntl.F_WRLCK)
os.link('leased0', 'link')
open('/tmp/up', 'w').close()
while True: signal.pause()
"""


async def test_files_that_others_hold_leases_on(launcher: AnyLauncher) -> None:
    async with new_box(launcher) as box:
        await box.files.write("/tmp/lease.py", LEASE.encode())
        await shell(
            box,
            "setsid -f python3 -I /tmp/lease.py > /tmp/out 2>&1 < /dev/null;"
            "until test -e /tmp/up -o -s /tmp/out; do :; done",
        )
        assert (await shell(box, "cat /tmp/out")).output == ""
        with opened(await archived(box)) as tar:
            assert len(tar.getnames()) == 152
            for name in ("leased0", "leased149", "link"):
                content = tar.extractfile(f"workspace/{name}")
                assert content is not None and content.read() == b"text"


async def test_what_can_not_be_read(launcher: AnyLauncher, user: str, owned_directory: Path) -> None:
    if user != "nobody":
        pytest.skip("root can read everything")
    (owned_directory / "closed").write_text("another user's")
    (owned_directory / "closed").chmod(0o600)
    async with new_box(launcher, BoxSpec("host", workdir=owned_directory)) as box:
        with pytest.raises(PermissionError):
            await archived(box)


MOVING = """
import os
os.chdir('/workspace')
os.makedirs('a/b/c'); os.mkdir('x')
open('/tmp/up', 'w').close()
while True:
    os.rename('a/b', 'x/b'); os.symlink('/usr', 'a/b'); os.unlink('a/b'); os.rename('x/b', 'a/b')
"""


async def test_directories_that_move_meanwhile(launcher: AnyLauncher) -> None:
    async with new_box(launcher) as box:
        await box.files.write("/tmp/moving.py", MOVING.encode())
        await shell(
            box,
            "setsid -f python3 -I /tmp/moving.py > /dev/null 2>&1 < /dev/null;"
            "until test -e /tmp/up; do :; done",
        )
        for _ in range(30):
            with opened(await archived(box)) as tar:
                names = set(tar.getnames())
            assert {"workspace/a", "workspace/x"} <= names
            assert all(name.rsplit("/", 1)[-1] in ("workspace", *"abcx") for name in names)


async def test_a_link_in_the_place_of_a_directory_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("top/a/one", "top/a/two", "other/two/secret"):
        (tmp_path / path).mkdir(parents=True)
    real = file_trees.open_directory

    def after_a_swap(path: str) -> int:
        assert path == str(tmp_path / "top/a")
        (tmp_path / "top/a").rename(tmp_path / "top/b")
        (tmp_path / "top/a").symlink_to(tmp_path / "other")
        return real(path)

    monkeypatch.setattr(file_archive, "open_directory", after_a_swap)
    with (tmp_path / "archive").open("w+b", buffering=0) as written:
        Archiver(Output(written.fileno())).archive([str(tmp_path / "top")])
        written.seek(0)
        with tarfile.open(fileobj=written) as tar:
            assert [name.rpartition("/")[2] for name in tar.getnames()] == ["top", "a", "one"]


CHURN = """
import os, sys
os.chdir('/workspace')
for n in range(40):
    with open(f'shrinking{n}', 'wb') as file: file.truncate(300_000)
print('up', flush=True)
while True:
    for n in range(40):
        os.truncate(f'shrinking{n}', 0); os.truncate(f'shrinking{n}', 300_000)
        open('vanishing', 'w').close(); os.unlink('vanishing')
        os.mkdir('d'); os.rename('d', 'e'); os.rmdir('e'); os.symlink('x', 'd'); os.unlink('d')
"""


async def test_files_that_change_while_they_are_read(launcher: AnyLauncher) -> None:
    async with new_box(launcher) as box:
        await shell(box, "cd /workspace && for n in $(seq 300); do echo $n > n$n; done")
        churn = (
            "cat > /tmp/churn.py; exec setsid -f python3 -I /tmp/churn.py > /tmp/churn.out 2>&1 < /dev/null"
        )
        await box.files.write("/tmp/churn.py", CHURN.encode())
        await shell(box, churn.partition("; ")[2])
        await shell(box, "until grep -q up /tmp/churn.out; do :; done")
        for _ in range(3):
            with opened(await archived(box)) as tar:
                members = {member.name: member for member in tar}
            assert {f"workspace/n{n}" for n in range(1, 301)} <= members.keys()


@pytest.mark.parametrize("path", ["/absent", "/etc/passwd", "/workspace/link"])
async def test_what_is_no_directory(box: ServedBox, path: str) -> None:
    await shell(box, "ln -sfn /tmp /workspace/link")
    with pytest.raises(OSError) as caught:
        await archived(box, ["/workspace", path])
    assert caught.value.errno in (errno.ENOENT, errno.ENOTDIR)
    assert caught.value.filename == path


async def test_putting_back_replaces_what_is_there(launcher: AnyLauncher) -> None:
    async with new_box(launcher) as first, new_box(launcher) as second:
        await shell(first, "cd /workspace; mkdir a b; echo new > a/f; ln -s a/f link; echo f > d; echo r > r")
        # A directory where a file was, a file where a directory was, links where either was.
        await shell(
            second,
            "cd /workspace; echo old > /tmp/target; mkdir -p a d/sub link; ln -s /tmp/target a/f; echo b > b;"
            "ln -s /tmp/target r; echo keep > kept",
        )
        await second.files.restore(in_pieces(await archived(first)))
        show = "cd /workspace; cat a/f d r kept; readlink link; ls -d b/; cat /tmp/target"
        assert (await shell(second, show)).output.split() == ["new", "f", "r", "keep", "a/f", "b/", "old"]


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info


@pytest.mark.of_namespaces  # a container's root file system can be written to
async def test_an_archive_reaches_no_further_than_a_program(launcher: AnyLauncher) -> None:
    async with new_box(launcher) as box:
        for name in ("../../usr/x", "/etc/passwd", "proc/sys/kernel/hostname", "x"):
            with pytest.raises(OSError):
                await box.files.restore(in_pieces(tar_of((member(name), b"evil"))))
        with pytest.raises(OSError):
            link = member("workspace/l", tarfile.LNKTYPE, "etc/passwd")
            await box.files.restore(in_pieces(tar_of((link, b""))))
        device = member("workspace/dev", tarfile.CHRTYPE)
        set_id = member("workspace/setid", mode=0o6755)
        pipe = member("workspace/pipe", tarfile.FIFOTYPE)
        await box.files.restore(in_pieces(tar_of((device, b""), (set_id, b"#!"), (pipe, b""))))
        assert (await shell(box, "cd /workspace; stat -c '%n %a' *")).output == "setid 755\n"


@pytest.mark.parametrize(
    "cut", [lambda data: b"", lambda data: data[:100], lambda data: data[:2000], lambda data: b"x" * 4096]
)
async def test_what_is_no_archive(box: ServedBox, cut: "object") -> None:
    assert callable(cut)
    data = tar_of((member("workspace/whole"), b"x" * 5000))
    with pytest.raises(OSError) as caught:
        await box.files.restore(in_pieces(cut(data)))
    assert caught.value.errno == errno.EINVAL


async def test_an_archive_cut_between_two_files(box: ServedBox) -> None:
    data = tar_of((member("workspace/one"), b"x" * 512), (member("workspace/two"), b"y" * 512))
    with pytest.raises(OSError):
        await box.files.restore(in_pieces(data[:1024]))


async def test_an_archive_that_breaks_off(box: ServedBox) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(100)
        raise RuntimeError("gave up")

    with pytest.raises(RuntimeError, match="gave up"):
        await box.files.restore(broken())


async def test_a_host_directory_comes_back_as_its_owners(
    launcher: AnyLauncher, owned_directory: Path
) -> None:
    async with new_box(launcher) as box:
        await shell(box, "echo text > /workspace/file")
        data = await archived(box)
    async with new_box(launcher, BoxSpec("host", workdir=owned_directory)) as box:
        await box.files.restore(in_pieces(data))
    assert (owned_directory / "file").read_text() == "text\n"
    assert (owned_directory / "file").stat().st_uid == owned_directory.stat().st_uid
    assert [path.name for path in owned_directory.iterdir()] == ["file"]
