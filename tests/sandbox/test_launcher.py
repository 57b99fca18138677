"""The launcher: many boxes, and what happens when one can't be made."""

import asyncio
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher, messages
from box_policy.sandbox.namespaces import launcher as launcher_module
from box_policy.sandbox.namespaces.box import NamespaceBox
from box_policy.sandbox.namespaces.cgroups import ZYGOTE
from box_policy.sandbox.namespaces.channel import Channel
from tests.sandbox.boxes import PATIENCE, descendants, no_descriptors_left, open_descriptors, processes, shell

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_twenty_boxes_one_after_the_other(launcher: NamespaceLauncher) -> None:
    for number in range(20):
        box = await launcher.create(BoxSpec(str(number)))
        assert box.id == str(number)
        assert (await shell(box, f"echo {number}")).output == f"{number}\n"
        await box.close()


async def test_ten_boxes_at_once(launcher: NamespaceLauncher) -> None:
    boxes = await asyncio.gather(*(launcher.create(BoxSpec(str(number))) for number in range(10)))
    outcomes = await asyncio.gather(*(shell(box, "readlink /proc/self/ns/net") for box in boxes))
    assert len({outcome.output for outcome in outcomes}) == 10
    await asyncio.gather(*(box.close() for box in boxes))


async def test_a_box_sees_nothing_of_another(launcher: NamespaceLauncher) -> None:
    first, second = await launcher.create(BoxSpec("1")), await launcher.create(BoxSpec("2"))
    await shell(first, "echo secret > /tmp/f; echo secret > /dev/shm/f; echo secret > /workspace/f")
    assert (await shell(second, "ls -A /tmp /dev/shm /workspace")).output.split() == [
        "/dev/shm:",
        "/tmp:",
        "/workspace:",
    ]
    await first.close()
    await second.close()


@pytest.mark.parametrize("hostname", ["", "-a", "a b", "a\n", "a" * 64, "ä", "a.b", "../x"])
async def test_host_names_that_are_none(launcher: NamespaceLauncher, hostname: str) -> None:
    with pytest.raises(SandboxError, match="is no host name"):
        await launcher.create(BoxSpec("x", hostname=hostname))


@pytest.mark.parametrize("size", [0, -1])
async def test_a_size_of_nothing_is_not_taken_for_no_limit(launcher: NamespaceLauncher, size: int) -> None:
    with pytest.raises(SandboxError, match="bytes are too few"):
        await launcher.create(BoxSpec("x", scratch_bytes=size))


async def test_too_many_directories(launcher: NamespaceLauncher) -> None:
    many = [Path("/opt/" + "x" * 200 + str(number)) for number in range(1000)]
    with pytest.raises(SandboxError, match="too many read-only directories"):
        await launcher.create(BoxSpec("x", read_only=many))


async def test_a_failed_box_harms_no_other(launcher: NamespaceLauncher, box: NamespaceBox) -> None:
    with pytest.raises(SandboxError):
        await launcher.create(BoxSpec("x", workdir=Path("/absent")))
    assert (await shell(box, "echo alive")).output == "alive\n"


async def test_a_create_that_is_cancelled_leaves_no_box(launcher: NamespaceLauncher) -> None:
    descriptors = open_descriptors()
    creation = asyncio.ensure_future(launcher.create(BoxSpec("x")))
    await asyncio.sleep(0)
    creation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation
    assert open_descriptors() == descriptors


async def test_user_namespaces_that_are_switched_off(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if user != "caller":
        pytest.skip("the same for every user")
    # The limit of a user namespace made for this zygote alone: the machine's stays as it is.
    lowered = """
import os, sys; sys.path.append(sys.argv[1])
from box_policy.sandbox.namespaces import network_messages, zygote
os.unshare(os.CLONE_NEWUSER)
open("/proc/sys/user/max_user_namespaces", "w").write("0")
zygote.main()
"""
    monkeypatch.setattr(launcher_module, "_ZYGOTE_CODE", lowered)
    launcher = NamespaceLauncher()
    try:
        with pytest.raises(SandboxError, match=r"switched off.*sysctl user\.max_user_namespaces"):
            await launcher.create(BoxSpec("x"))
    finally:
        await launcher.close()


async def test_a_zygote_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_module, "_ZYGOTE_CODE", "raise SystemExit(3)")
    launcher = NamespaceLauncher()
    with pytest.raises(SandboxError, match="has ended with status 3"):
        await launcher.create(BoxSpec("x"))
    await launcher.close()


async def test_a_zygote_that_was_killed_is_reaped_at_once() -> None:
    before = {process.pid for process in processes()}
    launcher = NamespaceLauncher()
    box = await launcher.create(BoxSpec("x"))
    new = [process for process in descendants(os.getpid()) if process.pid not in before]
    [zygote] = [process.pid for process in new if process.name == ZYGOTE]
    os.kill(zygote, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        await box.closed()
        while Path(f"/proc/{zygote}").exists():
            await asyncio.sleep(0.001)
    await (await launcher.create(BoxSpec("next"))).close()
    await launcher.close()


async def test_a_request_that_cannot_be_sent(launcher: NamespaceLauncher) -> None:
    descriptors = open_descriptors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Channel, "send", too_many_in_flight)
        with pytest.raises(SandboxError, match="Too many references"):
            await launcher.create(BoxSpec("x"))
    assert open_descriptors() == descriptors
    await (await launcher.create(BoxSpec("next"))).close()


def too_many_in_flight(*_: object) -> None:
    raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))


async def test_a_caller_without_descriptors_left(launcher: NamespaceLauncher) -> None:
    other = NamespaceLauncher()
    with no_descriptors_left():
        for one in (launcher, other):
            with pytest.raises(SandboxError, match="Too many open files"):
                await one.create(BoxSpec("x"))
    await (await launcher.create(BoxSpec("next"))).close()
    await other.close()


async def test_the_zygote_runs_the_package_of_its_caller(tmp_path: Path) -> None:
    # Even if another one is installed: that is what this copy is to the interpreter.
    source = Path(launcher_module.__file__).parents[2]
    copy = tmp_path / "box_policy"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (copy / "sandbox/namespaces/zygote.py").write_text("raise SystemExit(7)")
    code = (
        "import asyncio\n"
        "from box_policy.sandbox.launcher import BoxSpec\n"
        "from box_policy.sandbox.namespaces import NamespaceLauncher\n"
        "async def main(): await NamespaceLauncher().create(BoxSpec('x'))\n"
        "asyncio.run(main())"
    )
    caller = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE):
        _, errors = await caller.communicate()
    assert b"has ended with status 7" in errors


async def test_an_interpreter_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/absent/python")
    launcher = NamespaceLauncher()
    with pytest.raises(SandboxError, match="/absent/python could not be started: No such file or directory"):
        await launcher.create(BoxSpec("x"))
    await launcher.close()


@pytest.mark.parametrize(
    "datagram",
    [
        b"not json",
        b"[]",
        b"{}",
        b'{"event": "unknown"}',
        b'{"event": "started"}',
        b'{"event": "started", "id": "x"}',
        b'{"event": "ended", "id": 1}{',
        b'{"event": "network"}',
        b'{"event": "outer"}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
async def test_a_box_that_breaks_the_protocol_is_given_up(datagram: bytes) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        box = NamespaceBox(BoxSpec("odd"), near)
        far.send(datagram)
        async with asyncio.timeout(PATIENCE):
            await box.closed()
            with pytest.raises(SandboxError):
                await box.ready()
        assert far.recv(100) == b""


async def test_descriptors_that_were_not_asked_for_are_closed() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    with far:
        box = NamespaceBox(BoxSpec("odd"), near)
        messages.send(far, {"event": "unknown"}, [writer] * 10)
        os.close(writer)
        await box.closed()
        assert os.read(reader, 1) == b""
        os.close(reader)
