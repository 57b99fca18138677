"""A store without a gate, fed from files; and what came of it, to be awaited."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from box_policy.audit.records import Entry, Outcome, PolicyRecord
from box_policy.audit.sinks import Audit
from box_policy.control.file_source import FileSource
from box_policy.control.files.watched_file import FileStatus
from box_policy.control.store import InForce, PolicyStore
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.rules import CompiledPolicy

DENY = '{"mode": "deny-all"}'
OPEN = '{"mode": "allow-all"}'
BAD = '{"mode": "allow-some"}'


def only(*names: str) -> str:
    """A policy that allows these names."""
    listed = ", ".join(f'"{name}"' for name in names)
    return f'{{"mode": "custom", "allowed_domains": [{listed}]}}'


class Gate:
    """What puts policies in force: nobody."""

    def __init__(self) -> None:
        self.broken = False

    def compile(self, policy: NetworkPolicy) -> CompiledPolicy:
        if self.broken:
            raise RuntimeError("the gate is broken")
        return CompiledPolicy(policy)

    def put_policy(self, box_id: str, policy: CompiledPolicy, generation: int) -> int:
        return 0

    def drop(self, box_id: str) -> None: ...


class Source(FileSource):
    """Counts its rounds."""

    rounds = 0
    _busy = False

    async def _round(self) -> None:
        self._busy = True
        await super()._round()
        self._busy = False
        self.rounds += 1

    @property
    def waits(self) -> bool:
        """Whether everything has been looked at, and only an event or the poll will change that."""
        return self.rounds > 0 and not self._busy and self._agenda.next() > time.monotonic()


class Files:
    """A source of files, its store, and all that was put and recorded."""

    def __init__(self, path: Path, boxes: Collection[str] = ("web",), **options: Any) -> None:
        self.records: list[PolicyRecord] = []
        self.put: list[InForce] = []
        audit = Audit(self._record)
        self.gate = Gate()
        self.store = PolicyStore(self.gate, audit)
        self.store.subscribe(self.put.append)
        self.source = Source(path, self.store, audit, boxes=boxes, **options)

    def _record(self, record: Entry) -> None:
        assert isinstance(record, PolicyRecord)
        self.records.append(record)

    def policy(self, box: str = "web") -> str:
        """The policy in force, as kind or as the names that it allows."""
        policy = self.store.get(box).policy
        return " ".join(policy.allowed_domains) if policy.allowed_domains else policy.kind

    def generation(self, box: str = "web") -> int:
        return self.store.get(box).generation

    def unhappy(self) -> list[tuple[str, Outcome, int]]:
        """The records of what didn't come into force: box, outcome, generation that stays."""
        return [(r.box, r.outcome, r.generation) for r in self.records if r.outcome is not Outcome.ACCEPTED]

    def status(self, name: str) -> FileStatus:
        (status,) = [status for status in self.source.status() if Path(status.path).name == name]
        return status

    def states(self) -> dict[str, str]:
        return {Path(status.path).name: status.state for status in self.source.status()}


async def until(condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
    """Wait for something that has no event of its own: a status."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def watching(files: Files) -> AsyncIterator[Files]:
    """Load and watch, from a moment on at which events are being heard."""
    files.source.load()
    task = asyncio.create_task(files.source.watch())
    try:
        await until(lambda: files.source.waits)
        yield files
    finally:
        task.cancel()
        await asyncio.wait([task])


async def rounds(files: Files, number: int = 3) -> None:
    """Let everything be looked at some times more."""
    wanted = files.source.rounds + number
    await until(lambda: files.source.rounds >= wanted)


async def no_events(*_: str, **__: object) -> AsyncIterator[set[tuple[Any, str]]]:
    """A file system that tells nothing."""
    await asyncio.Event().wait()
    yield set()


def replace(path: Path, text: str) -> None:
    """Write a file the right way: whole, then under its name."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)
