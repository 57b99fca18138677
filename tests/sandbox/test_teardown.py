"""However a box ends, nothing of it remains: no process, no mount, no namespace."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from box_policy.sandbox.launcher import BoxSpec, ProgramSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces.box import NamespaceBox
from tests.sandbox.boxes import PATIENCE, Process, Watch, descendants, open_descriptors, processes, shell

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Ignores what can be ignored, and leaves its session.
STUBBORN = "trap '' TERM INT HUP QUIT; setsid -f sleep 1000; setsid -f sleep 1000; sleep 1000 & echo up; wait"


async def stubborn(box: NamespaceBox) -> None:
    """Start programs that do not want to end."""
    reader, writer = os.pipe()
    await box.start(ProgramSpec(["/bin/sh", "-c", STUBBORN], stdout=writer))
    os.close(writer)
    assert os.read(reader, 10) == b"up\n"
    os.close(reader)


def parts(box_processes: list[Process]) -> dict[str, Process]:
    return {process.name: process for process in box_processes}


async def new_processes(launcher: NamespaceLauncher, spec: BoxSpec) -> tuple[NamespaceBox, list[Process]]:
    """A box with stubborn programs, and its processes: the outer one, pid 1, the programs."""
    before = {process.pid for process in processes()}
    box = await launcher.create(spec)
    await stubborn(box)
    outer = next(p for p in descendants(os.getpid()) if p.pid not in before and p.name == "box-outer")
    return box, [outer, *descendants(outer.pid)]


def assert_no_trace(members: list[Process]) -> None:
    """Neither these processes nor their network namespace exist any more."""
    # An ordinary user is not shown the namespaces of pid 1, but those of the programs.
    networks = {member.network for member in members if member.name == "sleep"}
    assert len(networks) == 1
    assert networks != {""}
    assert networks.isdisjoint({process.network for process in processes()})
    assert {member.pid for member in members}.isdisjoint({process.pid for process in processes()})


@pytest.mark.parametrize("victim", ["box-init", "box-outer"])
async def test_killing_a_part_ends_the_box(launcher: NamespaceLauncher, victim: str) -> None:
    box, members = await new_processes(launcher, BoxSpec("doomed"))
    assert len(members) >= 5
    program = await box.start(ProgramSpec(["sleep", "1000"]))
    watch = Watch()
    watch.add([process.pid for process in members])
    os.kill(parts(members)[victim].pid, signal.SIGKILL)
    await watch.all_ended()
    async with asyncio.timeout(PATIENCE):
        await box.closed()
        assert await program.wait() == -signal.SIGKILL
    assert_no_trace(members)
    with pytest.raises(SandboxError, match="ended"):
        await box.start(ProgramSpec(["true"]))
    await box.close()


async def test_closing_ends_everything(launcher: NamespaceLauncher) -> None:
    box, members = await new_processes(launcher, BoxSpec("closing"))
    program = await box.start(ProgramSpec(["sleep", "1000"]))
    await box.close()
    assert_no_trace(members)
    assert await program.wait() == -signal.SIGKILL
    assert {sock.fileno() for sock in box.listeners.tcp} == {-1}
    await box.closed()
    await box.close()


async def test_close_while_a_program_is_being_started(launcher: NamespaceLauncher) -> None:
    box = await launcher.create(BoxSpec("closing"))
    start = asyncio.ensure_future(box.start(ProgramSpec(["sleep", "1000"])))
    await asyncio.sleep(0)
    await box.close()
    with pytest.raises(SandboxError, match="ended"):
        await start


async def test_a_box_that_ends_closes_no_listener(launcher: NamespaceLauncher) -> None:
    # Whoever serves them closes them: a number reused under an event loop would be worse.
    box, members = await new_processes(launcher, BoxSpec("doomed"))
    os.kill(parts(members)["box-init"].pid, signal.SIGKILL)
    await box.closed()
    assert -1 not in {sock.fileno() for sock in box.listeners.tcp}
    await box.close()


async def test_killing_the_zygote_ends_its_boxes_and_the_next_works(user: str) -> None:
    if user != "caller":
        pytest.skip("the same for every user")
    launcher = NamespaceLauncher()
    try:
        before = {process.pid for process in processes()}
        first, members = await new_processes(launcher, BoxSpec("first"))
        zygote = next(p for p in descendants(os.getpid()) if p.pid not in before and p.name == "box-zygote")
        watch = Watch()
        watch.add([process.pid for process in (*members, zygote)])
        os.kill(zygote.pid, signal.SIGKILL)
        await watch.all_ended()
        await first.close()
        assert_no_trace(members)
        second = await launcher.create(BoxSpec("second"))
        assert (await shell(second, "echo alive")).output == "alive\n"
    finally:
        await launcher.close()


CALLER = """
import asyncio, os, sys
from box_policy.sandbox.launcher import BoxSpec, ProgramSpec
from box_policy.sandbox.namespaces import NamespaceLauncher
async def main():
    launcher = NamespaceLauncher()
    boxes = [await launcher.create(BoxSpec(str(n))) for n in range(2)]
    for box in boxes:
        reader, writer = os.pipe()
        await box.start(ProgramSpec(["/bin/sh", "-c", sys.argv[1]], stdout=writer))
        os.read(reader, 3)
    print("up", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_killing_the_caller_leaves_nothing(user: str, number: signal.Signals) -> None:
    if user != "caller":
        pytest.skip("the same for every user")
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, STUBBORN],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"up\n"
    members = descendants(caller.pid)
    outers = [process for process in members if process.name == "box-outer"]
    boxes = [[outer, *descendants(outer.pid)] for outer in outers]
    assert [len(box) >= 5 for box in boxes] == [True, True]
    watch = Watch()
    watch.add([process.pid for process in members])
    caller.send_signal(number)
    caller.wait()
    caller.stdout.close()
    await watch.all_ended()
    for box in boxes:
        assert_no_trace(box)


async def test_closing_the_launcher_closes_its_boxes(user: str) -> None:
    if user != "caller":
        pytest.skip("the same for every user")
    launcher = NamespaceLauncher()
    _, first = await new_processes(launcher, BoxSpec("1"))
    _, second = await new_processes(launcher, BoxSpec("2"))
    await launcher.close()
    for members in (first, second):
        assert_no_trace(members)
    assert not [p for p in descendants(os.getpid()) if p.name == "box-zygote" and p.parent == os.getpid()][1:]
    with pytest.raises(SandboxError, match="launcher is closed"):
        await launcher.create(BoxSpec("3"))
    await launcher.close()


async def test_a_box_keeps_nothing_of_the_callers_open(launcher: NamespaceLauncher) -> None:
    box, members = await new_processes(launcher, BoxSpec("quiet"))
    # A session of its own: what the caller's terminal sends to the foreground does not reach it.
    assert os.getsid(0) not in {os.getsid(process.pid) for process in members}
    for process in members:
        if process.name in ("box-init", "box-outer") and os.access(f"/proc/{process.pid}/fd", os.R_OK):
            streams = {Path(f"/proc/{process.pid}/fd/{fd}").stat().st_rdev for fd in range(3)}
            assert streams == {Path("/dev/null").stat().st_rdev}
    await box.close()


async def test_mounts_of_a_box_are_not_the_hosts(launcher: NamespaceLauncher) -> None:
    with open("/proc/self/mounts") as file:
        before = file.read()
    box = await launcher.create(BoxSpec("mounting"))
    with open("/proc/self/mounts") as file:
        assert file.read() == before
    await box.close()


async def test_no_descriptor_is_left_behind(launcher: NamespaceLauncher) -> None:
    await (await launcher.create(BoxSpec("warm"))).close()
    gc.collect()
    before = open_descriptors()
    for _ in range(3):
        box = await launcher.create(BoxSpec("once"))
        await shell(box, "true")
        await box.close()
    assert open_descriptors() == before
