"""A box's files, from outside: what each operation does, and that it is done by a process of the box."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from box_policy.sandbox.launcher import BoxPausedError, BoxSpec, SandboxError
from box_policy.sandbox.namespaces.files import WORKERS
from box_policy.sandbox.namespaces.served_box import ServedBox
from tests.sandbox.boxes import PATIENCE, new_box, open_descriptors, python, shell
from tests.sandbox.conftest import AnyLauncher

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def pieces(*parts: bytes, then: BaseException | None = None) -> AsyncIterator[bytes]:
    """A stream of these, which may fail after them."""
    for part in parts:
        yield part
    if then is not None:
        raise then


async def read(box: ServedBox, path: str) -> bytes:
    return await box.files.read(path, limit=1 << 24)


async def no_workers(box: ServedBox) -> None:
    """Return when the box has no file worker."""
    async with asyncio.timeout(PATIENCE):
        while (await shell(box, "grep -l box-files /proc/[0-9]*/comm 2>/dev/null")).output:
            await asyncio.sleep(0)


async def test_what_is_written_is_read(box: ServedBox) -> None:
    content = bytes(range(256)) * 5000
    await box.files.write("/workspace/deep/er/file", content)
    assert await read(box, "/workspace/deep/er/file") == content
    assert (
        await shell(box, "cksum < /workspace/deep/er/file; stat -c '%a %u' /workspace/deep/er/file")
    ).status == 0
    await box.files.write("/workspace/deep/er/file", b"")
    assert await read(box, "/workspace/deep/er/file") == b""


async def test_content_may_come_in_pieces(box: ServedBox) -> None:
    await box.files.write("/workspace/parts", pieces(b"a", b"", b"b" * 300_000, b"c"))
    assert await read(box, "/workspace/parts") == b"a" + b"b" * 300_000 + b"c"


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (3, 4, b"3456"),
        (8, 9, b"89"),
        (99, 5, b""),
        (0, 0, b""),
    ],
)
async def test_a_part_of_a_file(box: ServedBox, offset: int, length: int | None, expected: bytes) -> None:
    await box.files.write("/tmp/digits", b"0123456789")
    assert await box.files.read("/tmp/digits", offset=offset, length=length, limit=100) == expected


@pytest.mark.parametrize(("offset", "length"), [(0, None), (0, 10), (1, None), (1, 9)])
async def test_a_read_is_bounded(box: ServedBox, offset: int, length: int | None) -> None:
    await box.files.write("/tmp/digits", b"0123456789")
    with pytest.raises(OSError) as caught:
        await box.files.read("/tmp/digits", offset=offset, length=length, limit=8)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, "/tmp/digits")
    assert await box.files.read("/tmp/digits", offset=2, limit=8) == b"23456789"
    assert await box.files.read("/tmp/digits", length=8, limit=8) == b"01234567"


async def test_a_size_that_lies(box: ServedBox) -> None:
    # The size of a file of /proc is 0, whatever it holds.
    assert (await read(box, "/proc/self/comm")) == b"box-files\n"
    with pytest.raises(OSError, match="large"):
        await box.files.read("/proc/self/status", limit=100)
    await shell(box, "truncate -s 1T /tmp/sparse")
    with pytest.raises(OSError, match="large"):
        await box.files.read("/tmp/sparse", limit=1 << 20)
    assert await box.files.read("/tmp/sparse", offset=1 << 39, length=10, limit=10) == bytes(10)


async def test_a_file_in_pieces(box: ServedBox) -> None:
    content = os.urandom(3_000_000)
    await box.files.write("/tmp/large", content)
    async with box.files.open("/tmp/large") as stream:
        assert b"".join([piece async for piece in stream]) == content


async def test_a_stream_need_not_be_read_to_its_end(box: ServedBox) -> None:
    await shell(box, "truncate -s 1T /tmp/sparse")
    async with box.files.open("/tmp/sparse") as stream:
        assert await anext(stream)
    await no_workers(box)
    with pytest.raises((OSError, StopAsyncIteration)):
        await anext(stream)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/workspace/absent", FileNotFoundError),
        ("/workspace", IsADirectoryError),
        ("/etc/passwd/x", NotADirectoryError),
        ("/tmp/\udcff\udcfe", FileNotFoundError),
        ("relative", OSError),
        ("/nul\0", OSError),
        ("/surrogate\ud800", OSError),
        ("/" + "x" * 300, OSError),
        ("/x" * 5000, OSError),
    ],
)
async def test_errors_are_the_kernels_own(box: ServedBox, path: str, error: type[OSError]) -> None:
    with pytest.raises(error) as caught:
        await read(box, path)
    assert caught.value.filename == path
    with pytest.raises(error):
        async with box.files.open(path):
            pytest.fail("it was opened")
    with pytest.raises(OSError):
        await box.files.list(path + "/x", limit=5)


@pytest.mark.of_namespaces  # a container's root file system can be written to
async def test_a_read_only_place_is_not_written(box: ServedBox) -> None:
    for path in ("/usr/x", "/etc/passwd", "/x"):
        with pytest.raises(OSError) as caught:
            await box.files.write(path, b"")
        assert caught.value.errno == errno.EROFS


async def test_a_replaced_file_keeps_its_mode(box: ServedBox) -> None:
    await shell(box, "echo old > /workspace/tool; chmod 750 /workspace/tool")
    await box.files.write("/workspace/tool", b"new")
    await box.files.write("/workspace/new", b"new")
    assert (await shell(box, "stat -c %a /workspace/tool /workspace/new")).output.split() == ["750", "644"]


async def test_a_link_is_written_through(box: ServedBox) -> None:
    await shell(box, "cd /workspace; mkdir -p real; ln -sf real/target link; ln -sf loop loop")
    await box.files.write("/workspace/link", b"one")
    await box.files.write("/workspace/link", b"two")
    assert await read(box, "/workspace/real/target") == b"two"
    assert (await box.files.stat("/workspace/link")).type == "symlink"
    with pytest.raises(OSError) as caught:
        await box.files.write("/workspace/loop", b"x")
    assert caught.value.errno == errno.ELOOP


async def test_a_write_that_breaks_off_changes_nothing(box: ServedBox) -> None:
    await box.files.write("/workspace/half/file", b"before")
    with pytest.raises(RuntimeError, match="gave up"):
        await box.files.write("/workspace/half/file", pieces(b"x" * 500_000, then=RuntimeError("gave up")))
    await no_workers(box)
    assert await read(box, "/workspace/half/file") == b"before"
    assert [info.name for info in await box.files.list("/workspace/half", limit=9)] == ["file"]


@pytest.mark.of_namespaces  # the space of a container has no bound
async def test_a_write_past_the_space_there_is(launcher: AnyLauncher) -> None:
    async with new_box(launcher, BoxSpec("small", scratch_bytes=1 << 20)) as box:
        await box.files.write("/tmp/x", b"before")
        with pytest.raises(OSError) as caught:
            await box.files.write("/tmp/x", bytes(2 << 20))
        assert caught.value.errno == errno.ENOSPC
        assert await read(box, "/tmp/x") == b"before"
        assert len(await box.files.list("/tmp", limit=9)) == 1


async def test_a_cancelled_operation_ends_its_worker(box: ServedBox) -> None:
    before = open_descriptors()
    for _ in range(3):
        begun = asyncio.Event()

        async def never(begun: asyncio.Event = begun) -> AsyncIterator[bytes]:
            yield b"x"
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(box.files.write("/workspace/never", never()))
        await begun.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await no_workers(box)
    assert open_descriptors() == before
    with pytest.raises(FileNotFoundError):
        await read(box, "/workspace/never")


async def test_a_directory(box: ServedBox) -> None:
    make = "mkdir /tmp/d; cd /tmp/d; mkdir dir; echo hello > file; ln -s nowhere link; mkfifo pipe"
    await shell(box, make)
    found = {info.name: info for info in await box.files.list("/tmp/d/", limit=4)}
    types = {name: info.type for name, info in found.items()}
    assert types == {"dir": "directory", "file": "file", "link": "symlink", "pipe": "other"}
    assert (found["file"].size, found["file"].path) == (6, "/tmp/d/file")
    assert await box.files.stat("/tmp/d/file") == found["file"]
    when, inode = (await shell(box, "stat -c '%.Y %i' /tmp/d/file")).output.split()
    assert found["file"].modified == pytest.approx(float(when), abs=1e-3)
    assert found["file"].inode == int(inode)
    with pytest.raises(OSError, match="large"):
        await box.files.list("/tmp/d", limit=3)


async def test_names_that_are_not_utf_8(box: ServedBox) -> None:
    name = os.fsdecode(b'\xff\n"\\\xc3\xa9')
    await box.files.write("/workspace/odd/" + name, b"odd")
    assert [info.name for info in await box.files.list("/workspace/odd", limit=1)] == [name]
    assert await read(box, "/workspace/odd/" + name) == b"odd"
    await box.files.rename("/workspace/odd/" + name, "/workspace/odd/even")
    assert (await box.files.stat("/workspace/odd/even")).name == "even"


async def test_making_moving_removing(box: ServedBox) -> None:
    files = box.files
    await files.mkdir("/workspace/m")
    with pytest.raises(FileExistsError):
        await files.mkdir("/workspace/m")
    with pytest.raises(FileNotFoundError):
        await files.mkdir("/workspace/m/a/b")
    await files.mkdir("/workspace/m/a/b", parents=True)
    await files.mkdir("/workspace/m/a/b", parents=True)
    await files.write("/workspace/m/a/f", b"1")
    await files.rename("/workspace/m/a/f", "/workspace/m/g")
    await files.rename("/workspace/m/a", "/workspace/m/z")
    with pytest.raises(OSError):
        await files.remove("/workspace/m")
    await files.remove("/workspace/m/g")
    with pytest.raises(FileNotFoundError):
        await files.remove("/workspace/m/g", recursive=True)
    await files.remove("/workspace/m", recursive=True)
    with pytest.raises(FileNotFoundError):
        await files.stat("/workspace/m")


async def test_stat_looks_behind_a_link_if_asked(box: ServedBox) -> None:
    await shell(box, "ln -s /etc/passwd /workspace/p; ln -s gone /workspace/dangling")
    assert (await box.files.stat("/workspace/p")).type == "symlink"
    assert (await box.files.stat("/workspace/p", follow=True)).type == "file"
    with pytest.raises(FileNotFoundError):
        await box.files.stat("/workspace/dangling", follow=True)


async def test_many_operations_at_once_wait_for_each_other(box: ServedBox) -> None:
    begun = 0
    enough = asyncio.Event()
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        nonlocal begun
        begun += 1
        if begun == WORKERS:
            enough.set()
        await go_on.wait()
        yield b"x"

    writes = [asyncio.create_task(box.files.write(f"/tmp/slow/{n}", slow())) for n in range(3 * WORKERS)]
    await enough.wait()
    count = (await shell(box, "grep -l box-files /proc/[0-9]*/comm | wc -l")).output
    assert int(count) == begun == WORKERS
    # What is read goes on meanwhile.
    async with box.files.open("/etc/passwd") as stream:
        assert await anext(stream)
    go_on.set()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*writes)
    assert len(await box.files.list("/tmp/slow", limit=99)) == 3 * WORKERS


async def test_nobody_in_the_box_sees_into_a_worker(box: ServedBox) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"secret"
        begun.set()
        await go_on.wait()

    write = asyncio.create_task(box.files.write("/tmp/private", slow()))
    await begun.wait()
    look = """
import os
pid = next(p for p in os.listdir('/proc') if p.isdigit() and open(f'/proc/{p}/comm').read() == 'box-files\\n')
for name in ('mem', 'environ', 'maps', 'fd/0', 'fd/1', 'cwd', 'root', 'exe', 'syscall'):
    try:
        file = (os.readlink if name in ('cwd', 'root', 'exe') else open)(f'/proc/{pid}/{name}')
        if name == 'syscall':
            file.read()  # which is where the kernel looks, if the owner is the same
        print(name)
    except PermissionError:
        pass
status = dict(line.split(':', 1) for line in open(f'/proc/{pid}/status'))
own = dict(line.split(':', 1) for line in open('/proc/self/status'))
for name in ('Uid', 'Gid', 'CapPrm', 'CapEff', 'CapBnd', 'NoNewPrivs', 'Seccomp'):
    if status[name] != own[name]:
        print(name, status[name], own[name])
print(open(f'/proc/{pid}/cmdline').read().strip('\\0'))
"""
    outcome = await python(box, look)
    go_on.set()
    await write
    assert outcome.output == "box\n"


async def test_files_of_a_box_that_has_ended(launcher: AnyLauncher) -> None:
    box = await launcher.create(BoxSpec("ending"))
    begun = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        begun.set()
        await asyncio.Event().wait()

    async with box.files.open("/dev/../etc/passwd") as stream:
        read_all = [piece async for piece in stream]
        assert read_all
    write = asyncio.create_task(box.files.write("/tmp/x", slow()))
    await begun.wait()
    await box.close()
    write.cancel()
    with pytest.raises(SandboxError, match="ended"):
        await read(box, "/etc/passwd")
    with pytest.raises(asyncio.CancelledError):
        await write


async def test_a_stream_of_a_box_that_ends(launcher: AnyLauncher) -> None:
    async with new_box(launcher) as box:
        await shell(box, "truncate -s 1T /tmp/sparse")
        with pytest.raises(SandboxError):
            async with box.files.open("/tmp/sparse") as stream:
                async for _ in stream:
                    if box.listeners.tcp[0].fileno() >= 0:
                        await box.close()


async def test_files_of_a_paused_box(launcher: AnyLauncher) -> None:
    async with new_box(launcher) as box:
        await box.pause()
        with pytest.raises(BoxPausedError):
            await read(box, "/etc/passwd")
        await box.resume()
        assert await read(box, "/etc/passwd")
