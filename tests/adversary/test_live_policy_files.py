"""Policies that come from a file that is wrong, half, gone, or not what it seems, with a box behind them.

What counts as a whole and valid document is held in ``tests/control``. Here a box tries what the policy
forbids at each of these moments, and what it allows.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from box_policy.audit.records import Entry, Outcome, PolicyRecord
from box_policy.control.file_source import FileSource
from box_policy.control.store import PolicyStore
from tests.adversary.arena import Arena, Inmate
from tests.adversary.wire import hello, tls
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Watched:
    """A box whose policy is a file."""

    def __init__(self, arena: Arena, inmate: Inmate, path: Path) -> None:
        self.arena = arena
        self.inmate = inmate
        self.path = path
        self.told: asyncio.Queue[PolicyRecord] = asyncio.Queue()
        arena.audit.add(self._note)
        self.source = FileSource(path, PolicyStore(arena.gate, arena.audit), arena.audit, boxes=[inmate.id])

    def _note(self, record: Entry) -> None:
        if isinstance(record, PolicyRecord) and record.box == self.inmate.id:
            self.told.put_nowait(record)

    async def outcome(self) -> Outcome:
        """What has become of the last change of the file."""
        async with asyncio.timeout(10):
            return (await self.told.get()).outcome

    def replace(self, text: str | bytes) -> None:
        new = self.path.with_suffix(".new")
        new.write_bytes(text.encode() if isinstance(text, str) else text)
        new.replace(self.path)

    async def holds(self) -> None:
        """The good policy is in force: evil is out of reach by name and by address, and the allowed isn't."""
        box, lab = self.inmate.attacker, self.arena.lab
        self.arena.begin(self.inmate)
        assert str(await tls(plan.EVIL4, b"evil.test")(box)) == "alert 49"
        assert str(await box.exchange(plan.EVIL4, 443, b"RAW %s\n" % box.nonce.encode())) == "reset"
        line = await box.connect(plan.ALLOWED4, 443)
        assert "certificate" in await line.tls("allowed.test")
        await line.close()
        assert lab.packets(plan.EVIL4) == []
        assert [question.name for question in lab.dns.questions if question.name != "allowed.test"] == []


_GOOD: Final = '{"mode": "custom", "allowed_domains": ["allowed.test"]}'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    """A box whose policy file says that allowed.test is allowed."""
    inmate = await arena.inmate("deny-all", id="watched")
    path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    path.write_text(_GOOD)
    watched = Watched(arena, inmate, path)
    watched.source.load()
    task = asyncio.create_task(watched.source.watch())
    assert await watched.outcome() is Outcome.ACCEPTED
    yield watched
    task.cancel()
    await asyncio.wait([task])


REFUSED: Final = {
    "garbage": b"\x00\xff\xfe garbage {",
    "nothing": "",
    "blanks": "\n\n   \n",
    "a document cut short": _GOOD[:30],
    "a document of another shape": '["allow-all"]',
    "a number": "1",
    "another mode": _GOOD.replace("custom", "allow-al"),
    "another key": _GOOD.replace("allowed_domains", "allowed_domain"),
    "a key twice": '{"mode": "custom", "mode": "allow-all"}',
    "a list under the mode that takes none": '{"mode": "allow-all", "allowed_domains": ["allowed.test"]}',
    "a text for a list": '{"mode": "custom", "allowed_domains": "allowed.test"}',
    "one bad network among good ones": '{"mode": "custom", "allowed_cidrs": ["51.81.66.0/24", "1.2.3.4/8"]}',
    "one bad name among good ones": '{"mode": "custom", "allowed_domains": ["evil.test", "*"]}',
    "two documents": f"{_GOOD}\n---\nmode: allow-all\n",
    "yes for a mode": "mode: yes\n",
    "an asterisk without quotes": "mode: custom\nallowed_domains: [*.evil.test]\n",
    "a tag": "!!python/object/apply:os.system ['true']\n",
    "anchors that swell": "a: &a [x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{b}: &{b} [*{a},*{a},*{a},*{a},*{a},*{a},*{a},*{a}]\n" for a, b in itertools.pairwise("abcdefgh")
    ),
    "a depth without end": "[" * 20000,
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
async def test_a_bad_one_changes_nothing(watched: Watched, text: str | bytes) -> None:
    watched.replace(text)
    assert await watched.outcome() is Outcome.REFUSED
    await watched.holds()
    (status,) = watched.source.status()
    assert (status.state, bool(status.error)) == ("refused", True)
    assert watched.told.empty(), "one record a bad revision"


async def test_one_that_is_gone(watched: Watched) -> None:
    watched.path.unlink()
    assert await watched.outcome() is not Outcome.ACCEPTED
    await watched.holds()
    watched.replace(_GOOD)


async def test_half_of_one_that_is_still_written(watched: Watched) -> None:
    # Each beginning of it that is a document opens everything; the whole opens nothing.
    watched.replace(_GOOD + " ")
    await watched.holds()
    text = "mode: allow-all\n#" + " " * 20 + "\ndenied_cidrs: [0.0.0.0/0]\n"
    with watched.path.open("wb", buffering=0) as file:
        for byte in text.encode():
            file.write(bytes([byte]))
            await asyncio.sleep(0.003)
            assert watched.arena.gated(watched.inmate).policy.policy.kind == "allowlist"
        await watched.holds()
    assert await watched.outcome() is Outcome.REFUSED
    await watched.holds()


async def test_a_directory_that_is_swapped_as_kubernetes_does(arena: Arena, tmp_path: Path) -> None:
    for number, text in enumerate((_GOOD, '{"mode": "deny-all"}', _GOOD)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "policy.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("0")
    (tmp_path / "policy.yaml").symlink_to("..data/policy.yaml")
    inmate = await arena.inmate("deny-all", id="mounted")
    watched = Watched(arena, inmate, tmp_path / "policy.yaml")
    watched.source.load()
    task = asyncio.create_task(watched.source.watch())
    for number in range(3):
        if number:
            (tmp_path / "..new").symlink_to(str(number))
            (tmp_path / "..new").rename(tmp_path / "..data")
        assert await watched.outcome() is Outcome.ACCEPTED
        expected = "alert 49" if number == 1 else "data"
        line = await inmate.attacker.connect(plan.ALLOWED4, 443)
        await line.send(hello(inmate.attacker, b"allowed.test"))
        assert str(await line.read(size=7)) == expected
        await line.close()
    task.cancel()
    await asyncio.wait([task])
