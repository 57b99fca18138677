"""Every way in which a policy file can change is noticed, with the kernel's events and without."""

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import watchfiles

from tests.control.gate_with_files import DENY, OPEN, Files, no_events, only, replace, until, watching
from tests.control.reading import in_child

EVENTS: dict[str, Any] = {"poll": 3600.0}
"""Nothing but events."""
POLL: dict[str, Any] = {"poll": 0.02, "awatch": no_events}
"""Nothing but the poll."""

both = pytest.mark.parametrize("by", [EVENTS, POLL], ids=["events", "poll"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir(mode=0o755)
    path = folder / "policy.yaml"
    path.write_text(only("a.test"))
    return path


async def in_force(files: Files, policy: str, box: str = "web") -> None:
    """Wait for a policy to be."""
    reached = asyncio.Event()

    def look(*_: object) -> None:
        if box in files.store and files.policy(box) == policy:
            reached.set()

    end = files.store.subscribe(look)
    look()
    try:
        async with asyncio.timeout(5):
            await reached.wait()
    finally:
        end()


@both
async def test_a_rename(path: Path, by: dict[str, Any]) -> None:
    async with watching(Files(path, **by)) as files:
        for generation, name in enumerate(("b.test", "c.test", "b.test"), 2):
            replace(path, only(name))
            await in_force(files, name)
            assert files.generation() == generation
            assert files.store.get("web").source == str(path)
        assert files.unhappy() == []


@both
async def test_a_write_in_place(path: Path, by: dict[str, Any]) -> None:
    async with watching(Files(path, **by)) as files:
        for name in ("b.test", "c.test"):
            path.write_text(only(name))
            await in_force(files, name)
        assert files.generation() == 3


@both
async def test_an_older_time_and_the_same_size(path: Path, by: dict[str, Any]) -> None:
    before = path.stat()
    async with watching(Files(path, **by)) as files:
        new = path.with_name("new")
        new.write_text(only("b.test"))
        os.utime(new, (1, 1))
        new.replace(path)
        await in_force(files, "b.test")
        with path.open("r+") as stream:
            stream.write(only("c.test"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        await in_force(files, "c.test")
        assert path.stat().st_size == before.st_size


@both
async def test_a_configmaps_swap_in_both_directions(path: Path, by: dict[str, Any]) -> None:
    folder = path.parent
    for name in ("b.test", "c.test"):
        (folder / f"..{name}").mkdir(mode=0o755)
        (folder / f"..{name}" / path.name).write_text(only(name))
    data, new = folder / "..data", folder / "..data_tmp"
    data.symlink_to("..b.test")
    path.unlink()
    path.symlink_to("..data/policy.yaml")
    for at in (path, folder):
        async with watching(Files(at, ["policy"], **by)) as files:
            for name in ("c.test", "b.test", "c.test", "b.test"):
                new.symlink_to(f"..{name}")
                new.replace(data)
                await in_force(files, name, "policy")
            assert files.unhappy() == []


@both
async def test_links_into_other_directories(path: Path, by: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "far").mkdir(mode=0o755)
    far = tmp_path / "far" / "real.yaml"
    far.write_text(only("b.test"))
    middle = tmp_path / "middle"
    middle.symlink_to(far)
    path.unlink()
    path.symlink_to("../middle")
    async with watching(Files(path, **by)) as files:
        assert files.policy() == "b.test"
        replace(far, only("c.test"))
        await in_force(files, "c.test")
        other = far.with_name("other")
        other.write_text(only("d.test"))
        middle.unlink()
        middle.symlink_to(other)
        await in_force(files, "d.test")
        replace(other, only("e.test"))
        await in_force(files, "e.test")


@both
async def test_a_directory_that_a_link_leads_to(path: Path, by: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir(mode=0o755)
    (tmp_path / "two").mkdir(mode=0o755)
    (tmp_path / "one" / "web.yaml").write_text(only("b.test"))
    (tmp_path / "two" / "web.yaml").write_text(only("c.test"))
    link = tmp_path / "link"
    link.symlink_to("one")
    async with watching(Files(link, **by)) as files:
        assert files.policy() == "b.test"
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").replace(link)
        await in_force(files, "c.test")
        replace(tmp_path / "two" / "web.yaml", only("d.test"))
        await in_force(files, "d.test")


@both
async def test_a_file_that_goes_and_comes_again(path: Path, by: dict[str, Any]) -> None:
    async with watching(Files(path, **by)) as files:
        path.unlink()
        await until(lambda: files.status(path.name).state == "missing")
        path.write_text(only("b.test"))
        await in_force(files, "b.test")
        await until(lambda: files.status(path.name).state == "ok")


class Watches:
    """watchfiles.awatch, and what was asked of it."""

    def __init__(self) -> None:
        self.set_up = 0
        self.heard = asyncio.Event()
        self.paths: set[str] = set()

    async def __call__(self, *paths: str, **options: Any) -> AsyncIterator[set[tuple[Any, str]]]:
        self.set_up += 1
        async for batch in watchfiles.awatch(*paths, **options):
            self.heard.set()
            self.paths |= {path for _, path in batch}
            yield batch


@pytest.mark.parametrize("seen", [True, False], ids=["missed", "at once"])
@pytest.mark.parametrize("whole", [True, False], ids=["directory", "file"])
async def test_a_directory_made_anew_is_watched_again(path: Path, whole: bool, seen: bool) -> None:
    """The kernel's watch is on the directory that has gone; the new one has its inode, as a rule."""
    watches = Watches()
    files = Files(path.parent if whole else path, ["policy"], poll=0.05, awatch=watches)
    async with watching(files):
        shutil.rmtree(path.parent)
        if seen:
            await until(lambda: "missing" in files.states().values())
        path.parent.mkdir(mode=0o755)
        path.write_text(only("b.test"))
        await in_force(files, "b.test", "policy")
        await until(lambda: watches.set_up > 1)
        watches.heard.clear()
        replace(path, only("c.test"))
        await in_force(files, "c.test", "policy")
        async with asyncio.timeout(1):
            await watches.heard.wait()


async def test_a_directory_that_is_replaced_is_watched_again(path: Path) -> None:
    watches = Watches()
    new = path.parent.with_name("new")
    new.mkdir(mode=0o755)
    (new / path.name).write_text(only("b.test"))
    async with watching(Files(path, poll=0.05, awatch=watches)) as files:
        path.parent.rename(path.parent.with_name("old"))
        new.rename(path.parent)
        await in_force(files, "b.test")
        await until(lambda: watches.set_up == 2)


async def test_other_files_in_the_directory_wake_nobody(path: Path) -> None:
    """The gate's own log may lie beside its policy."""
    watches = Watches()
    async with watching(Files(path, poll=3600, awatch=watches)) as files:
        path.with_name("audit.jsonl").write_text("{}")
        replace(path, DENY)
        await in_force(files, "deny-all")
    assert watches.paths == {str(path)}


# Without events


async def test_without_events_the_poll_goes_on_and_it_is_said_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tried = 0

    async def exhausted(*_: str, **__: object) -> AsyncIterator[set[tuple[Any, str]]]:
        nonlocal tried
        tried += 1
        raise OSError("OS file watch limit reached")
        yield set()

    async with watching(Files(path, poll=0.02, awatch=exhausted, retry=0.05)) as files:
        replace(path, OPEN)
        await in_force(files, "allow-all")
        await until(lambda: tried > 3)
        replace(path, DENY)
        await in_force(files, "deny-all")
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "no file events (OS file watch limit reached): changes of policies are found by looking for them"
    ]


async def test_a_watch_that_ends_is_set_up_again(path: Path) -> None:
    heard = asyncio.Event()

    async def ends_once(*paths: str, **options: Any) -> AsyncIterator[set[tuple[Any, str]]]:
        if not heard.is_set():
            heard.set()
            return
        async for batch in watchfiles.awatch(*paths, **options):
            yield batch
            works.set()

    works = asyncio.Event()
    async with watching(Files(path, poll=0.02, awatch=ends_once, retry=0.05)):
        for generation in range(100):
            replace(path, only(f"{generation}.test"))
            if works.is_set():
                break
            await asyncio.sleep(0.05)
    assert works.is_set()


EXHAUSTED = """
import asyncio, os, sys
from pathlib import Path
uid = os.geteuid()
try:
    os.unshare(os.CLONE_NEWUSER)
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/sys/user", sys.argv[2]).write_text("0")
except OSError as error:
    print(error)
    sys.exit(77)
from tests.control.gate_with_files import *
async def main():
    path = Path(sys.argv[1])
    async with watching(Files(path, poll=0.02)) as files:
        replace(path, DENY)
        await until(lambda: files.policy() == "deny-all")
asyncio.run(main())
"""


@pytest.mark.parametrize("limit", ["max_inotify_instances", "max_inotify_watches"])
def test_a_host_that_has_no_watches_left(path: Path, limit: str) -> None:
    """In a user namespace, where the limits (user_namespaces(7), namespaces(7)) are ours to set."""
    in_child(EXHAUSTED, path, limit)


# Much at once


async def test_of_a_thousand_changes_a_second_the_last_counts(path: Path) -> None:
    def change() -> None:
        for number in range(1000):
            replace(path, only(f"n{number}.test"))

    async with watching(Files(path, **EVENTS)) as files:
        before = files.source.rounds
        began = asyncio.get_running_loop().time()
        await asyncio.to_thread(change)
        await in_force(files, "n999.test")
        took = asyncio.get_running_loop().time() - began
        assert files.source.rounds - before < 20 + 300 * took
        assert files.unhappy() == []


async def test_a_thousand_boxes(path: Path) -> None:
    for number in range(1000):
        (path.parent / f"box{number}.yaml").write_text(only(f"n{number}.test"))
    async with watching(Files(path.parent, [], **EVENTS)) as files:
        assert len(files.store) == 1001
        loop_was_held = await longest_hold(
            lambda: replace(path.parent / "box500.yaml", OPEN), in_force(files, "allow-all", "box500")
        )
        assert loop_was_held < 0.25
        assert files.policy("box501") == "n501.test"


async def test_a_large_document_does_not_hold_up_the_loop(path: Path) -> None:
    """Half a second's work for the parser."""
    names = [f"name-{number}.example.test" for number in range(20_000)]
    async with watching(Files(path, **EVENTS)) as files:
        held = await longest_hold(lambda: replace(path, only(*names)), in_force(files, " ".join(names)))
        assert held < 0.25


async def longest_hold(change: Any, done: Any) -> float:
    """Seconds for which the loop could do nothing else, from a change until it is in force."""
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0.001)
            longest = max(longest, loop.time() - before)

    beating = asyncio.create_task(beat())
    thread = threading.Thread(target=change)
    thread.start()
    await done
    thread.join()
    beating.cancel()
    return longest
