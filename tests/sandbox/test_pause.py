"""A paused box runs nothing, starts nothing, and can still be ended."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from box_policy.sandbox.launcher import BoxPausedError, BoxSpec, Program, ProgramSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces.served_box import ServedBox
from tests.sandbox.boxes import PATIENCE, Watch, descendants, new_box, processes, shell
from tests.sandbox.conftest import AnyLauncher
from tests.sandbox.test_teardown import assert_no_trace, new_processes, parts

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNT = "n=0; while :; do n=$((n+1)); echo $n > /tmp/n; mv /tmp/n /tmp/count; done"
FORKS = """
import os
while True:
    pid = os.fork()
    if pid:
        os._exit(0)
    open('/tmp/alive', 'w').close()
"""


async def background(box: ServedBox, script: str) -> None:
    await shell(box, f"setsid -f sh -c '{script}' > /dev/null 2>&1 < /dev/null")


def states(pids: list[int]) -> set[str]:
    return {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids}


def members(before: set[int]) -> list[int]:
    outer = next(p for p in descendants(os.getpid()) if p.pid not in before and p.name == "box-outer")
    return [process.pid for process in descendants(outer.pid) if process.name != "box-init"]


@pytest.mark.of_namespaces
async def test_every_process_stops_and_goes_on(launcher: AnyLauncher) -> None:
    before = {process.pid for process in processes()}
    async with new_box(launcher) as box:
        for _ in range(3):
            await background(box, COUNT)
        await shell(box, "until test -s /tmp/count; do :; done")
        for _ in range(5):
            await box.pause()
            await box.pause()
            stopped = members(before)
            assert len(stopped) >= 3
            # D: a shell whose new child is stopped before it has become another program.
            assert states(stopped) <= {"T", "D"}
            await box.resume()
            await box.resume()
        count = (await box.files.read("/tmp/count", limit=99)).strip()
        await shell(box, f"until test $(cat /tmp/count) != {count.decode()}; do :; done")


@pytest.mark.of_namespaces
async def test_a_process_that_forks_on_and_on(launcher: AnyLauncher) -> None:
    before = {process.pid for process in processes()}
    async with new_box(launcher) as box:
        await box.files.write("/tmp/forks.py", FORKS.encode())
        await background(box, "exec python3 -I /tmp/forks.py")
        await shell(box, "until test -e /tmp/alive; do :; done")
        for _ in range(20):
            await box.pause()
            stopped = members(before)
            assert stopped
            assert states(stopped) <= {"T"}
            assert members(before) == stopped
            await box.resume()


async def test_nothing_is_started_in_a_paused_box(launcher: AnyLauncher) -> None:
    async with new_box(launcher) as box:
        await box.pause()
        with pytest.raises(BoxPausedError, match="paused"):
            await box.start(ProgramSpec(["true"]))
        await box.resume()
        assert (await shell(box, "echo on")).output == "on\n"


@pytest.mark.of_namespaces
async def test_starts_under_way_are_refused_or_stopped(launcher: AnyLauncher) -> None:
    before = {process.pid for process in processes()}
    async with new_box(launcher) as box:
        for _ in range(10):
            starts = [asyncio.ensure_future(box.start(ProgramSpec(["sleep", "1000"]))) for _ in range(5)]
            await asyncio.sleep(0)
            await box.pause()
            async with asyncio.timeout(PATIENCE):
                done = await asyncio.gather(*starts, return_exceptions=True)
            assert states(members(before)) <= {"T"}
            refused = [result for result in done if isinstance(result, BaseException)]
            assert all(isinstance(result, BoxPausedError) for result in refused)
            await box.resume()
            for program in done:
                if not isinstance(program, BaseException):
                    program.send_signal(signal.SIGKILL)
                    assert await program.wait() == -signal.SIGKILL


async def test_what_the_box_had_stopped_itself_stays_so(launcher: AnyLauncher) -> None:
    async with new_box(launcher) as box:
        await background(box, "echo $$ > /tmp/pid; kill -STOP $$; touch /tmp/on")
        is_stopped = "grep -q State:.T /proc/$(cat /tmp/pid)/status"
        await shell(box, f"until {is_stopped}; do :; done 2>/dev/null")
        await box.pause()
        await box.resume()
        assert (await shell(box, is_stopped)).status == 0
        await shell(box, "kill -CONT $(cat /tmp/pid); until test -e /tmp/on; do :; done")


async def test_a_shell_does_not_find_its_jobs_stopped(launcher: AnyLauncher) -> None:
    async with new_box(launcher) as box:
        program = await box.start(ProgramSpec(["/bin/sh", "-i"], terminal=(24, 80)))
        master = program.terminal
        assert master is not None
        os.write(master, b"sh -c 'touch /tmp/up; until test -e /tmp/go; do :; done'; echo do''ne\n")
        await shell(box, "until test -e /tmp/up; do :; done")
        for _ in range(10):
            await box.pause()
            await box.resume()
        await box.files.write("/tmp/go", b"")
        output = b""
        async with asyncio.timeout(PATIENCE):
            while b"done" not in output:
                output += await asyncio.to_thread(os.read, master, 4096)
        os.close(master)
        assert b"Stopped" not in output


async def test_signals_to_a_paused_box(launcher: AnyLauncher) -> None:
    async with new_box(launcher) as box:
        program = await box.start(ProgramSpec(["sleep", "1000"]))
        await box.pause()
        program.send_signal(signal.SIGCONT)
        program.send_signal(signal.SIGTERM)
        await box.resume()
        assert await program.wait() == -signal.SIGTERM


@pytest.mark.of_namespaces  # what the freezer has stopped ends when it goes on
async def test_killing_a_program_of_a_paused_box(launcher: AnyLauncher) -> None:
    async with new_box(launcher) as box:
        program = await box.start(ProgramSpec(["sleep", "1000"]))
        await box.pause()
        program.send_signal(signal.SIGKILL)
        assert await program.wait() == -signal.SIGKILL


# A program with a process in a group of its own, which ignores SIGHUP and counts on and on.
GROUP = """
import os, signal, time
if os.fork() == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    while True:
        open('/tmp/count', 'a').write('.')
time.sleep(1000)
"""


async def group(box: ServedBox) -> Program:
    await box.files.write("/tmp/group.py", GROUP.encode())
    program = await box.start(ProgramSpec(["python3", "-I", "/tmp/group.py"]))
    await counts_again(box)
    return program


async def counts_again(box: ServedBox) -> None:
    await shell(box, "rm -f /tmp/count; until test -s /tmp/count; do :; done")


async def stopped_again(pids: list[int]) -> None:
    async with asyncio.timeout(PATIENCE):
        while states(pids) != {"T"}:
            await asyncio.sleep(0.001)


@pytest.mark.of_namespaces
async def test_a_group_whose_parent_is_killed_stays_stopped(launcher: AnyLauncher) -> None:
    # The kernel sends SIGHUP and SIGCONT to what is stopped in a process group that becomes an orphan.
    before = {process.pid for process in processes()}
    async with new_box(launcher) as box:
        program = await group(box)
        await box.pause()
        program.send_signal(signal.SIGKILL)
        assert await program.wait() == -signal.SIGKILL
        left = members(before)
        assert len(left) == 1
        await stopped_again(left)
        await box.resume()
        await counts_again(box)


@pytest.mark.of_namespaces
async def test_what_something_else_continues_stops_again(launcher: AnyLauncher) -> None:
    before = {process.pid for process in processes()}
    async with new_box(launcher) as box:
        await group(box)
        await box.pause()
        everyone = members(before)
        assert len(everyone) == 2
        for _ in range(3):
            for pid in everyone:
                os.kill(pid, signal.SIGCONT)
            await stopped_again(everyone)
        await box.resume()
        await counts_again(box)


@pytest.mark.of_namespaces
async def test_a_paused_box_is_closed(launcher: NamespaceLauncher) -> None:
    box, everyone = await new_processes(launcher, BoxSpec("paused"))
    await box.pause()
    await box.close()
    assert_no_trace(everyone)
    for order in (box.pause, box.resume):
        with pytest.raises(SandboxError, match="ended"):
            await order()


@pytest.mark.of_namespaces
@pytest.mark.parametrize("victim", ["box-init", "box-outer"])
async def test_killing_a_part_ends_a_paused_box(launcher: NamespaceLauncher, victim: str) -> None:
    box, everyone = await new_processes(launcher, BoxSpec("paused"))
    begun = asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        yield b"x"
        begun.set()
        await asyncio.Event().wait()

    write = asyncio.ensure_future(box.files.write("/tmp/x", content()))
    await begun.wait()
    await box.pause()
    watch = Watch()
    watch.add([process.pid for process in everyone])
    os.kill(parts(everyone)[victim].pid, signal.SIGKILL)
    await watch.all_ended()
    async with asyncio.timeout(PATIENCE):
        await box.closed()
        write.cancel()
        await asyncio.wait([write])
    assert_no_trace(everyone)
