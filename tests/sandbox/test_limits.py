"""What a box is held to, by which means, and that it says so only where it is."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from box_policy.sandbox.launcher import BoxSpec, Limits, ProgramSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher, cgroups
from box_policy.sandbox.namespaces import launcher as launcher_module
from box_policy.sandbox.namespaces.box import NamespaceBox
from box_policy.sandbox.namespaces.box_init import SPARE_PROCESSES
from tests.sandbox.boxes import PATIENCE, Watch, descendants, new_box, processes, python, shell

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20


def zygotes() -> list[int]:
    """Those of this process."""
    return [process.pid for process in descendants(os.getpid()) if process.name == cgroups.ZYGOTE]


def groups(owners: Sequence[int]) -> list[Path]:
    """The groups of these zygotes' boxes. There may be others of other callers' on this machine."""
    cgroup, mountinfo = (Path(f"/proc/self/{name}").read_text() for name in ("cgroup", "mountinfo"))
    return [
        group
        for place in cgroups.find_places(cgroup, mountinfo)
        for owner in owners
        for group in Path(place.directory).glob(f"{cgroups.PREFIX}{owner}-*")
    ]


async def no_group(owners: Sequence[int] | None = None) -> None:
    """Return when there are none."""
    async with asyncio.timeout(PATIENCE):
        while groups(zygotes() if owners is None else owners):
            await asyncio.sleep(0.001)


async def limited(launcher: NamespaceLauncher, limits: Limits, *needed: str) -> NamespaceBox:
    """A box; the test is skipped if this machine can't hold it to ``needed``."""
    box = await launcher.create(BoxSpec("limited", limits=limits))
    if not box.limits.keys() >= set(needed):
        await box.close()
        pytest.skip(f"boxes of this user can't be held to {', '.join(needed)} here")
    return box


async def test_without_limits_nothing_is_made(launcher: NamespaceLauncher) -> None:
    async with new_box(launcher) as box:
        assert box.limits == {"disk": "2.0 GiB, size of a tmpfs"}
        assert groups(zygotes()) == []


async def test_a_host_directory_is_not_bounded(launcher: NamespaceLauncher, owned_directory: Path) -> None:
    async with new_box(launcher, BoxSpec("x", workdir=owned_directory, scratch_bytes=4 * MIB)) as box:
        assert box.limits == {"disk": "4.0 MiB, size of a tmpfs beside /workspace"}


async def test_what_this_machine_can_do(launcher: NamespaceLauncher, user: str) -> None:
    wanted = Limits(memory_bytes=256 * MIB, pids=50, cpus=1.5)
    async with new_box(launcher, BoxSpec("x", limits=wanted)) as box:
        if user == "nobody":
            assert box.limits.keys() == {"pids", "disk"}
            assert box.limits["pids"] == "50, rlimit"
        elif "memory" in box.limits:
            version = box.limits["memory"].partition("cgroup ")[2]
            assert dict(box.limits) == {
                "memory": f"256.0 MiB, cgroup {version}",
                "pids": f"50, cgroup {version} and rlimit",
                "cpus": f"1.5, cgroup {version}",
                "disk": "192.0 MiB, size of a tmpfs",
            }
            # A box sees none of it.
            assert {
                line.rpartition(":")[2] for line in (await shell(box, "cat /proc/self/cgroup")).output.split()
            } == {"/"}
    await no_group()


async def test_without_a_bound_of_memory_files_have_a_part_of_the_hosts(
    launcher: NamespaceLauncher, owned_directory: Path
) -> None:
    quarter = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    async with new_box(launcher, BoxSpec("x", scratch_bytes=1 << 50)) as box:
        assert box.limits["disk"].endswith("GiB, size of a tmpfs, a quarter of the host's memory")
        size = int((await shell(box, "stat -f -c '%b %S' /tmp | { read b s; echo $((b * s)); }")).output)
        assert abs(size - quarter) < MIB


@pytest.mark.parametrize(
    "limits",
    [
        Limits(memory_bytes=0),
        Limits(memory_bytes=-1),
        Limits(memory_bytes=1 * MIB),
        Limits(memory_bytes=1 << 80),
        Limits(pids=0),
        Limits(pids=1 << 80),
        Limits(cpus=0),
        Limits(cpus=float("nan")),
        Limits(cpus=float("inf")),
        Limits(cpus=1e30),
    ],
)
async def test_limits_that_no_box_can_live_with(launcher: NamespaceLauncher, limits: Limits) -> None:
    with pytest.raises(SandboxError, match="can't live with"):
        await launcher.create(BoxSpec("x", limits=limits))


BOMB = """
import os, sys, time
users = int(sys.argv[1])
go, start = os.pipe()
full, tell = os.pipe()
for user in range(users):
    if os.fork() == 0:
        if user:
            os.setresuid(user, user, user)
        os.close(start)
        os.read(go, 1)
        try:
            while os.fork():
                pass
        except OSError:
            os.write(tell, b'.')
        time.sleep(1000)
os.close(start)
for user in range(users):
    os.read(full, 1)
print(len([name for name in os.listdir('/proc') if name.isdigit()]), flush=True)
os.kill(-1, 9)
"""


async def test_a_fork_bomb(launcher: NamespaceLauncher) -> None:
    # Not to be run without a bound: it has one of its own, the user's on the host.
    async with new_box(launcher, BoxSpec("bomb", limits=Limits(pids=40))) as box:
        counted = int((await python(box, BOMB, "1")).output.split()[0])
        assert 35 <= counted <= 43
        assert (await shell(box, "echo on")).output == "on\n"


WITHOUT_GROUPS = """
import sys; sys.path.append(sys.argv[1])
from box_policy.sandbox.namespaces import cgroups, zygote
cgroups.find_places = lambda *_: []
zygote.main()
"""


async def test_a_fork_bomb_of_many_users(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each user of the box counts by itself; there is a bound for all of them, and not only by a group.
    if user != "caller":
        pytest.skip("this user's boxes have a single user")
    monkeypatch.setattr(launcher_module, "_ZYGOTE_CODE", WITHOUT_GROUPS)
    launcher = NamespaceLauncher()
    try:
        async with new_box(launcher, BoxSpec("bomb", limits=Limits(pids=40))) as box:
            assert box.limits["pids"] == "40, rlimit"
            if (await python(box, "import os; os.setuid(5)")).status:
                pytest.skip("this user's boxes have a single user")
            counted = int((await python(box, BOMB, "5")).output.split()[0])
            assert 35 <= counted <= 40 + SPARE_PROCESSES
    finally:
        await launcher.close()


async def test_files_and_the_end_of_a_box_full_of_processes(launcher: NamespaceLauncher) -> None:
    async with new_box(launcher, BoxSpec("bomb", limits=Limits(pids=20))) as box:
        fill = "import os, time\ntry:\n while True:\n  if os.fork() == 0: time.sleep(1000)\nexcept OSError: "
        await box.start(ProgramSpec(["/bin/sh", "-c", "exec python3 -I /tmp/fill.py"]))
        await box.files.write("/tmp/fill.py", (fill + "open('/tmp/full', 'w'); time.sleep(1000)").encode())
        program = await box.start(ProgramSpec(["/bin/sh", "-c", "exec python3 -I /tmp/fill.py"]))
        async with asyncio.timeout(PATIENCE):
            while "full" not in [info.name for info in await box.files.list("/tmp", limit=9)]:
                pass
        await asyncio.gather(*(box.files.read("/tmp/fill.py", limit=999) for _ in range(20)))
        await box.pause()
        await box.resume()
        program.send_signal(signal.SIGKILL)


async def test_boxes_are_counted_by_themselves(launcher: NamespaceLauncher) -> None:
    limits = Limits(pids=15)
    async with (
        new_box(launcher, BoxSpec("1", limits=limits)) as first,
        new_box(launcher, BoxSpec("2", limits=limits)) as second,
    ):
        fill = "for n in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 > /dev/null 2>&1 & done; echo ok"
        assert (await shell(first, fill)).output == "ok\n"
        assert (await shell(second, fill)).output == "ok\n"


async def test_the_bound_can_not_be_raised(launcher: NamespaceLauncher) -> None:
    async with new_box(launcher, BoxSpec("x", limits=Limits(pids=30))) as box:
        tried = (
            "import resource as r; print(r.getrlimit(r.RLIMIT_NPROC)); r.setrlimit(r.RLIMIT_NPROC, (31, 31))"
        )
        outcome = await python(box, tried)
        assert "(30, 30)\n" in outcome.output
        assert outcome.status == 1


async def test_programs_go_before_pid_1_when_memory_runs_out(box: NamespaceBox) -> None:
    assert (await shell(box, "cat /proc/self/oom_score_adj /proc/1/oom_score_adj")).output == "500\n0\n"
    assert await box.files.read("/proc/self/oom_score_adj", limit=9) == b"500\n"


HOG = "data = []\nwhile True: data.append(bytearray(1 << 20))"


async def test_memory_runs_out_for_a_program_and_not_for_the_box(launcher: NamespaceLauncher) -> None:
    box = await limited(launcher, Limits(memory_bytes=100 * MIB), "memory")
    try:
        bystander = await box.start(ProgramSpec(["sleep", "1000"]))
        for _ in range(3):
            assert (await python(box, HOG)).status == -signal.SIGKILL
        assert (await python(box, "bytearray(50 << 20); print('fits')")).output == "fits\n"
        bystander.send_signal(signal.SIGTERM)
        assert await bystander.wait() == -signal.SIGTERM
    finally:
        await box.close()
    await no_group()


async def test_a_full_scratch_directory_leaves_memory_for_programs(launcher: NamespaceLauncher) -> None:
    box = await limited(launcher, Limits(memory_bytes=100 * MIB), "memory")
    try:
        assert box.limits["disk"] == "75.0 MiB, size of a tmpfs"
        filled = await shell(box, "dd if=/dev/zero of=/tmp/x bs=1M 2>&1")
        assert "No space left" in filled.output
        assert (await shell(box, "rm /tmp/x; echo on")).output == "on\n"
    finally:
        await box.close()


async def test_processor_time(launcher: NamespaceLauncher) -> None:
    box = await limited(launcher, Limits(cpus=0.2), "cpus")
    try:
        spin = "import time; a = time.monotonic(); time.sleep(0)\nwhile time.process_time() < 0.1: pass\n"
        outcome = await python(box, spin + "print(time.monotonic() - a)")
        assert float(outcome.output) > 0.25
    finally:
        await box.close()


async def test_groups_go_with_their_box(launcher: NamespaceLauncher) -> None:
    box = await limited(launcher, Limits(pids=99), "pids")
    kept = await launcher.create(BoxSpec("kept", limits=Limits(pids=99)))
    before = len(groups(zygotes()))
    await box.close()
    if before:
        async with asyncio.timeout(PATIENCE):
            while len(groups(zygotes())) != before // 2:
                await asyncio.sleep(0.001)
    await kept.close()
    await no_group()


@pytest.mark.parametrize("victim", ["box-init", "box-outer"])
async def test_groups_go_however_the_box_ends(launcher: NamespaceLauncher, victim: str) -> None:
    before = {process.pid for process in processes()}
    box = await limited(launcher, Limits(memory_bytes=64 * MIB, pids=99), "pids")
    await box.start(ProgramSpec(["sleep", "1000"]))
    await box.pause()
    outer = next(p for p in descendants(os.getpid()) if p.pid not in before and p.name == "box-outer")
    part = next(p for p in (outer, *descendants(outer.pid)) if p.name == victim)
    os.kill(part.pid, signal.SIGKILL)
    await box.closed()
    await no_group()


async def test_a_closed_launcher_leaves_no_group(user: str) -> None:
    if user != "caller":
        pytest.skip("the same for every user")
    launcher = NamespaceLauncher()
    await limited(launcher, Limits(pids=99), "pids")
    owners = zygotes()
    await launcher.close()
    assert groups(owners) == []


async def test_groups_go_when_the_zygote_is_killed(user: str) -> None:
    if user != "caller":
        pytest.skip("the same for every user")
    before = set(zygotes())
    launcher = NamespaceLauncher()
    try:
        box = await limited(launcher, Limits(memory_bytes=64 * MIB, pids=99), "pids")
        await box.start(ProgramSpec(["sleep", "1000"]))
        await box.pause()
        owners = sorted(set(zygotes()) - before)
        os.kill(owners[0], signal.SIGKILL)
        await box.closed()
        await no_group(owners)
    finally:
        await launcher.close()


CALLER = """
import asyncio
from box_policy.sandbox.launcher import BoxSpec, Limits
from box_policy.sandbox.namespaces import NamespaceLauncher
async def content():
    yield b"x"
    print("up", flush=True)
    await asyncio.sleep(1000)
async def main():
    launcher = NamespaceLauncher()
    box = await launcher.create(BoxSpec("x", limits=Limits(memory_bytes=64 << 20, pids=99, cpus=1)))
    paused = await launcher.create(BoxSpec("y", limits=Limits(pids=99)))
    await paused.pause()
    await box.files.write("/tmp/x", content())
asyncio.run(main())
"""


def kill_caller(zygote: bool) -> Callable[[subprocess.Popen[bytes]], None]:
    """What ends a caller with ``kill -9``; with its zygote or without."""

    def kill(caller: subprocess.Popen[bytes]) -> None:
        members = descendants(caller.pid)
        caller.kill()
        if zygote:
            os.kill(next(p.pid for p in members if p.name == "box-zygote"), signal.SIGKILL)

    return kill


@pytest.mark.parametrize("with_zygote", [False, True])
async def test_a_killed_caller_leaves_no_group(user: str, with_zygote: bool) -> None:
    if user != "caller":
        pytest.skip("the same for every user")
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"up\n"
    async with asyncio.timeout(PATIENCE):
        while "box-files" not in {member.name for member in descendants(caller.pid)}:
            await asyncio.sleep(0.001)  # it is there, but may not have its name yet
    members = descendants(caller.pid)
    owners = [member.pid for member in members if member.name == cgroups.ZYGOTE]
    had_groups = bool(groups(owners))
    watch = Watch()
    watch.add([member.pid for member in members])
    kill_caller(with_zygote)(caller)
    caller.wait()
    caller.stdout.close()
    await watch.all_ended()
    if with_zygote and had_groups:
        # Nobody was left to do it: the next does.
        assert groups(owners) != []
        launcher = NamespaceLauncher()
        await launcher.create(BoxSpec("next", limits=Limits(pids=99)))
        await launcher.close()
    await no_group(owners)
