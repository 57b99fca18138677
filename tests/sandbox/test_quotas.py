"""What the kernel grants a user or the whole host: a box can't take it from other boxes or the caller."""

import asyncio
import ctypes
import errno
import json
import os
import select
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from box_policy.sandbox.launcher import BoxSpec, ProgramSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher, workload
from box_policy.sandbox.namespaces import launcher as launcher_module
from box_policy.sandbox.namespaces.box import NamespaceBox
from tests.sandbox.boxes import PATIENCE, descendants, new_box, processes, python, readable

pytestmark = pytest.mark.asyncio(loop_scope="module")


def outside_ids(outer: int) -> range:
    first, count = Path(f"/proc/{outer}/uid_map").read_text().split()[1:]
    return range(int(first), int(first) + int(count))


async def test_no_two_boxes_of_root_have_an_id_in_common(launcher: NamespaceLauncher, user: str) -> None:
    if user != "caller" or os.geteuid() != 0:
        pytest.skip("this user has a single id")
    before = {process.pid for process in processes()}
    other = NamespaceLauncher()
    try:
        boxes = await asyncio.gather(
            *(maker.create(BoxSpec(str(number))) for number in range(4) for maker in (launcher, other))
        )
        new = [process.pid for process in descendants(os.getpid()) if process.pid not in before]
        outers = [
            process.pid for process in processes() if process.pid in new and process.name == "box-outer"
        ]
        ids = sorted((outside_ids(outer) for outer in outers), key=lambda found: found.start)
        assert len(ids) == 8
        assert all(a.stop <= b.start for a, b in pairwise(ids))
        await asyncio.gather(*(box.close() for box in boxes))
    finally:
        await other.close()


INOTIFY = """
import ctypes, time
libc = ctypes.CDLL(None, use_errno=True)
made = 0
while made < 1000 and libc.inotify_init() >= 0:
    made += 1
print(made, ctypes.get_errno(), flush=True)
time.sleep(1000)
"""


async def line_of(box: NamespaceBox, source: str) -> str:
    """The first line of what a program prints that goes on."""
    reader, writer = os.pipe()
    await box.files.write("/tmp/source.py", source.encode())
    await box.start(ProgramSpec(["python3", "-I", "/tmp/source.py"], stdout=writer))
    os.close(writer)
    try:
        async with asyncio.timeout(PATIENCE):
            await readable(reader)
        return os.read(reader, 4096).decode()
    finally:
        os.close(reader)


async def test_inotify_instances(launcher: NamespaceLauncher, user: str) -> None:
    host = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    most = min(32, host // 4)
    # Those of a normal user have that user's together.
    count = 5 if user == "caller" and os.geteuid() == 0 else 1
    boxes = [await launcher.create(BoxSpec(str(number))) for number in range(count)]
    try:
        for box in boxes:
            assert await line_of(box, INOTIFY) == f"{most} {errno.EMFILE}\n"
        if user == "caller" and os.geteuid() == 0:
            # They are counted as the box's, and never as root's.
            fd = ctypes.CDLL(None, use_errno=True).inotify_init()
            assert fd >= 0
            os.close(fd)
    finally:
        await asyncio.gather(*(box.close() for box in boxes))


IN_FLIGHT = """
import array, os, socket, time
file, kept, sent = os.open("/dev/null", os.O_RDONLY), [], 0
many = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file] * 250))]
try:
    while sent < 100_000:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        kept.append(pair)
        pair[0].setblocking(False)
        try:
            while True:
                pair[0].sendmsg([b"x"], many)
                sent += 250
        except BlockingIOError:
            continue
except OSError as error:
    print(sent, error.errno, flush=True)
time.sleep(1000)
"""


async def test_descriptors_in_flight(launcher: NamespaceLauncher) -> None:
    async with new_box(launcher) as hostile, new_box(launcher) as other:
        sent, code = (int(word) for word in (await line_of(hostile, IN_FLIGHT)).split())
        assert code == errno.ETOOMANYREFS
        assert sent <= 8192 + 250
        for box in (hostile, other):
            # Pid 1 sends the terminal's descriptor.
            program = await box.start(ProgramSpec(["true"], terminal=(24, 80)))
            assert program.terminal is not None
            assert await program.wait() == 0
            os.close(program.terminal)
        await (await launcher.create(BoxSpec("another"))).close()


async def test_a_program_has_fewer_descriptors_than_pid_1(launcher: NamespaceLauncher) -> None:
    before = {process.pid for process in processes()}
    async with new_box(launcher) as box:
        limits = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
        soft, hard = (int(word) for word in (await python(box, limits)).output.split())
        inits = [p.pid for p in descendants(os.getpid()) if p.pid not in before and p.name == "box-init"]
        [line] = [
            line
            for line in Path(f"/proc/{inits[0]}/limits").read_text().splitlines()
            if line.startswith("Max open files")
        ]
        first_soft, first_hard = (int(word) for word in line.split()[3:5])
        assert soft == hard <= 8192
        assert first_soft == first_hard
        assert hard < first_hard or first_hard <= 1024


OPEN_TERMINALS = """
import os, time
try:
    for number in range(257):
        os.openpty()
except OSError as error:
    print(number, error.errno, flush=True)
time.sleep(1000)
"""


async def test_terminals(launcher: NamespaceLauncher) -> None:
    async with new_box(launcher) as box:
        assert await line_of(box, OPEN_TERMINALS) == f"256 {errno.ENOSPC}\n"
        with pytest.raises(SandboxError, match="No space left"):
            await box.start(ProgramSpec(["true"], terminal=(24, 80)))
        assert (await python(box, "print('on')")).output == "on\n"


# A zygote whose pid 1s can't hand out descriptors, or can't send now and then.
WITHOUT_ROOM = """
import sys; sys.path.append(sys.argv[1])
import errno
from box_policy.sandbox.namespaces import messages, zygote
send, failed = messages.send, set()
def failing(sock, message, fds=()):
    if message["event"] == "started" and fds:
        raise OSError(errno.ETOOMANYREFS, "Too many references")
    if message["event"] == "ended" and message["id"] not in failed:
        failed.add(message["id"])
        raise OSError(errno.ENOBUFS, "No buffer space available")
    send(sock, message, fds)
messages.send = failing
zygote.main()
"""


async def test_pid_1_lives_on_when_it_cannot_send(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if user != "caller":
        pytest.skip("the same for every user")
    monkeypatch.setattr(launcher_module, "_ZYGOTE_CODE", WITHOUT_ROOM)
    launcher = NamespaceLauncher()
    try:
        async with new_box(launcher) as box:
            with pytest.raises(SandboxError, match="Too many references"):
                await box.start(ProgramSpec(["sleep", "1000"], terminal=(24, 80)))
            assert (await python(box, "print('on')")).output == "on\n"
    finally:
        await launcher.close()


@pytest.fixture
async def unreadable(user: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NamespaceLauncher]:
    if user != "caller":
        pytest.skip("the same for every user")
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from box_policy.sandbox.namespaces import workload, zygote\n"
        'workload.refusal = lambda number, text: b\'{"errno": 2, "err\'\n'
        "zygote.main()"
    )
    monkeypatch.setattr(launcher_module, "_ZYGOTE_CODE", code)
    launcher = NamespaceLauncher()
    yield launcher
    await launcher.close()


async def test_a_report_that_cannot_be_read(unreadable: NamespaceLauncher) -> None:
    async with new_box(unreadable) as box:
        with pytest.raises(SandboxError, match="Input/output error"):
            await box.start(ProgramSpec(["absent"]))
        assert (await python(box, "print('on')")).output == "on\n"


@pytest.mark.parametrize("character", ["x", "\udcff", "\U0001f600", "\0"])
@pytest.mark.parametrize("length", [0, 1, 341, 500, 100_000])
async def test_a_report_is_written_whole(character: str, length: int) -> None:
    report = workload.refusal(errno.ENOENT, character * length)
    assert len(report) <= select.PIPE_BUF
    assert json.loads(report)["error"] in character * length


@pytest.mark.parametrize("name", ["\udcff" * 20_000, "\U0001f600" * 10_000])
async def test_a_refused_program_with_a_long_name(box: NamespaceBox, name: str) -> None:
    with pytest.raises(SandboxError):
        await box.start(ProgramSpec([f"/{name}"]))
    with pytest.raises(SandboxError):
        await box.start(ProgramSpec(["true"], cwd=f"/{name}"))
    assert (await python(box, "print('on')")).output == "on\n"
