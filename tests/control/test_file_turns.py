"""Who comes first: a file's changes, other people's, writers that pause, the poll, and the event loop."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from box_policy.control import file_source
from box_policy.control.files import policy_files, trusted_file
from box_policy.control.files.agenda import Agenda, Due
from box_policy.control.policy_file import examine
from box_policy.control.threads import in_thread
from box_policy.policy.document import parse_document
from box_policy.policy.model import NetworkPolicy
from tests.control.gate_with_files import (
    BAD,
    DENY,
    OPEN,
    Files,
    no_events,
    only,
    replace,
    rounds,
    until,
    watching,
)

PUT = NetworkPolicy.parse({"mode": "custom", "allowed_domains": ["put.test"]})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir(mode=0o755)
    path = folder / "web.yaml"
    path.write_text(only("a.test"))
    return path


class SlowParser:
    """Parses when it is let."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.let = threading.Event()

    def __call__(self, text: bytes, *, name: str) -> NetworkPolicy:
        self.begun.set()
        assert self.let.wait(10)
        return parse_document(text, name=name)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowParser]:
    slow = SlowParser()
    yield slow
    slow.let.set()


# What others put


@pytest.mark.parametrize("by", ["events", "poll"])
async def test_a_policy_put_after_the_file_changed_is_the_last(
    path: Path, by: str, slow: SlowParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"poll": 3600} if by == "events" else {"poll": 0.02, "awatch": no_events}
    async with watching(Files(path, **options)) as files:
        monkeypatch.setattr("box_policy.control.policy_file.parse_document", slow)
        replace(path, OPEN)
        await until(slow.begun.is_set)
        await files.store.put("web", PUT, source="control")
        slow.let.set()
        before = files.source.rounds
        await until(lambda: files.source.rounds > before)
        assert (files.policy(), files.generation()) == ("put.test", 2)
        assert files.states() == {"web.yaml": "ok"}
        replace(path, DENY)
        await until(lambda: files.policy() == "deny-all")


async def test_one_put_while_the_file_is_written_too(path: Path) -> None:
    """It changed before, though it is read only afterwards."""
    async with watching(Files(path, poll=0.02, awatch=no_events)) as files:
        with path.open("w") as stream:
            stream.write(OPEN)
            stream.flush()
            await until(lambda: files.states() == {"web.yaml": "being_written"})
            await files.store.put("web", PUT, source="control")
        await until(lambda: files.states() == {"web.yaml": "ok"})
        assert files.policy() == "put.test"


async def test_one_put_after_the_files_could_not_be_put_in_force(path: Path) -> None:
    async with watching(Files(path, poll=0.02, awatch=no_events)) as files:
        files.gate.broken = True
        replace(path, OPEN)
        await until(lambda: files.states() == {"web.yaml": "refused"})
        files.gate.broken = False
        await files.store.put("web", PUT, source="control")
        await until(lambda: files.states() == {"web.yaml": "ok"})
        assert files.policy() == "put.test"


async def test_the_files_own_earlier_revision_does_not_count_as_another(
    path: Path, slow: SlowParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later change is noticed before the earlier one is in force."""
    noticed = asyncio.Event()
    async with watching(Files(path, poll=3600)) as files:
        monkeypatch.setattr("box_policy.control.policy_file.parse_document", slow)
        replace(path, OPEN)
        await until(slow.begun.is_set)
        real = files.source._agenda.add

        def add(name: str, now: float, *, listing: bool) -> None:
            real(name, now, listing=listing)
            noticed.set()

        monkeypatch.setattr(Agenda, "add", lambda _, *args, **kwargs: add(*args, **kwargs))
        monkeypatch.setattr(Agenda, "add_everything", lambda _, now: noticed.set())
        replace(path, DENY)
        async with asyncio.timeout(5):
            await noticed.wait()
        files.source._agenda.everything, files.source._agenda._all_changed = 0.0, time.monotonic()
        slow.let.set()
        await until(lambda: files.policy() == "deny-all")
        assert files.generation() == 3


async def test_of_several_boxes_only_the_one_that_others_put_keeps_it(
    path: Path, slow: SlowParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(Files(path, ["db", "web"], poll=0.02, awatch=no_events)) as files:
        monkeypatch.setattr("box_policy.control.policy_file.parse_document", slow)
        replace(path, OPEN)
        await until(slow.begun.is_set)
        await files.store.put("db", PUT, source="control")
        slow.let.set()
        await until(lambda: files.policy("web") == "allow-all")
        await rounds(files)
        assert files.policy("db") == "put.test"


# A gate that fails for one box of several


async def test_what_one_box_did_not_get_is_not_what_counts(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(Files(path, ["a", "b", "c"], poll=0.02, awatch=no_events)) as files:
        real = files.gate.put_policy

        def put_policy(box: str, *what: Any) -> int:
            if box == "b":
                raise RuntimeError("no memory")
            return real(box, *what)

        with monkeypatch.context() as patch:
            patch.setattr(files.gate, "put_policy", put_policy)
            replace(path, OPEN)
            await until(lambda: files.states() == {"web.yaml": "refused"})
            assert [files.policy(box) for box in "abc"] == ["allow-all", "a.test", "allow-all"]
            replace(path, only("a.test"))
            await until(lambda: [files.policy(box) for box in "abc"] == ["a.test"] * 3)
            await until(lambda: files.states() == {"web.yaml": "ok"})
            replace(path, OPEN)
            await until(lambda: files.states() == {"web.yaml": "refused"})
        await until(lambda: files.states() == {"web.yaml": "ok"})
        assert [files.policy(box) for box in "abc"] == ["allow-all"] * 3


# Writers that pause, where there are no leases


async def test_any_event_starts_the_wait_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trusted_file, "_LEASED", frozenset())
    monkeypatch.setattr(trusted_file, "SETTLE", 0.3)
    monkeypatch.setattr(file_source, "SETTLE", 0.3)
    async with watching(Files(path, poll=3600)) as files:
        path.write_text(OPEN)
        await until(lambda: files.states() == {"web.yaml": "being_written"})
        file = files.source._files["default"]
        await until(lambda: file.sample is not None)
        first = file.sample
        file.notice(time.monotonic(), 0.0)
        assert file.sample is None
        files.source._on_change([str(path)])
        await until(lambda: file.sample is not None)
        assert file.sample is not None and first is not None
        assert file.sample.taken > first.taken
        await until(lambda: files.policy() == "allow-all")


def test_a_second_has_to_pass() -> None:
    assert trusted_file.SETTLE >= 1.0


# The poll


@pytest.mark.parametrize("content", [only(*(f"n{number}.test" for number in range(5_000))), BAD])
async def test_a_change_that_took_long_does_not_put_off_the_poll(
    path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(text: bytes, *, name: str) -> NetworkPolicy:
        time.sleep(0.2)
        return parse_document(text, name=name)

    monkeypatch.setattr("box_policy.control.policy_file.parse_document", slowly)
    async with watching(Files(path, poll=0.05, awatch=no_events)) as files:
        replace(path, content)
        await until(lambda: files.generation() == 2 or bool(files.unhappy()))
        await rounds(files, 1)
        assert files.source._agenda.everything - time.monotonic() < 0.1


async def test_many_files_put_it_off_but_not_for_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = examine

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.05)
        return real(*args, **kwargs)

    monkeypatch.setattr("box_policy.control.files.policy_files.examine", slowly)
    async with watching(Files(path, poll=0.01, awatch=no_events)) as files:
        await rounds(files, 2)
        assert 0.3 < files.source._agenda.everything - time.monotonic() < 2
        monkeypatch.setattr(file_source, "_LONGEST_POLL", 0.02)
        await rounds(files, 2)
        assert files.source._agenda.everything - time.monotonic() < 0.02


# Many files


async def test_the_directory_is_listed_when_there_may_be_another_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = 0
    real = policy_files.list_files

    def count(*args: Any) -> Any:
        nonlocal listed
        listed += 1
        return real(*args)

    async with watching(Files(path.parent, ["web"], poll=3600)) as files:
        monkeypatch.setattr(file_source, "list_files", count)
        for name in ("b.test", "c.test"):
            replace(path, only(name))
            await until(lambda name=name: files.policy() == name)  # type: ignore[misc]
        assert listed == 0
        replace(path.with_name("new.yaml"), only("d.test"))
        await until(lambda: "new" in files.store)
        assert listed > 0
        replace(path.with_suffix(".json"), OPEN)
        await until(lambda: files.status("web.yaml").state == "refused")
        path.unlink()
        await until(lambda: files.policy() == "allow-all")


async def test_files_that_are_as_they_were_take_none_of_the_loops_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        (path.parent / f"b{number}.yaml").write_text(only(f"n{number}.test"))
    async with watching(Files(path.parent, ["web"], poll=0.02, awatch=no_events)) as files:
        taken: list[str] = []
        joined: list[object] = []
        real = files.source._take

        async def take(found: policy_files.Found) -> None:
            taken.append(found.name)
            await real(found)

        monkeypatch.setattr(files.source, "_take", take)
        monkeypatch.setattr(file_source, "_joined", joined.append)
        await rounds(files, 3)
        assert taken == []
        replace(path, OPEN)
        await until(lambda: files.policy() == "allow-all")
        await rounds(files, 2)
        assert (taken, joined) == (["web"], [])


def test_when_a_change_was_noticed() -> None:
    due = Due(None, True, {"a": 2.0, "b": 4.0}, 3.0)
    assert [due.event(name) for name in "abc"] == [3.0, 4.0, 3.0]
    due = Due(frozenset("ab"), False, {"a": 2.0})
    assert [due.event(name) for name in "ab"] == [2.0, None]


# The end


ENDS = """
import asyncio, sys, time
from pathlib import Path
from box_policy.control import policy_file
from tests.control.gate_with_files import *
async def main():
    path = Path(sys.argv[1])
    begun = []
    async with watching(Files(path, poll=0.02, awatch=no_events)) as files:
        policy_file.parse_document = lambda *_, **__: begun.append(1) or time.sleep(60)
        replace(path, DENY)
        await until(lambda: begun)
asyncio.run(main())
"""


def test_a_document_that_is_being_parsed_holds_up_nobodys_end(path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", ENDS, path],
        check=True,
        timeout=15,
        stdin=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
        env=os.environ,
    )


async def test_what_fails_in_a_thread_is_raised(path: Path) -> None:
    def fail(number: int) -> AsyncIterator[None]:
        raise ValueError(number)

    with pytest.raises(ValueError, match="7"):
        await in_thread(fail, 7)
    assert await in_thread(len, [1, 2]) == 2
