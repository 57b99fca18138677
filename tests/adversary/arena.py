"""box-policy's own boxes under attack: real namespaces behind a gate in the test's loop."""

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, Self

from box_policy.audit.records import Entry, Record
from box_policy.audit.sinks import Audit
from box_policy.gate.boxes import GatedBox
from box_policy.gate.embedded import EmbeddedGate
from box_policy.gate.gate import Gate, Settings
from box_policy.gate.limits import Limits
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.reasons import Reason
from box_policy.sandbox.launcher import Box, BoxSpec, Launcher, Program, ProgramSpec
from tests.adversary.attack import CUSTOM, Attack, Outcome, Report, judge
from tests.adversary.attacker import AGENT, PATIENCE, Attacker, StreamChannel, interpreter
from tests.lab import Lab

_LONGEST_LINE: Final = 64 * 1024 * 1024


class Inmate:
    """A box under attack, and the attacker in it."""

    def __init__(self, id: str, box: Box, agent: Program, attacker: Attacker) -> None:
        self.id = id
        self.box = box
        self.agent = agent
        self.attacker = attacker


class Arena:
    """A gate and its boxes, from :meth:`open` to :meth:`close`."""

    def __init__(self, lab: Lab, launcher: Launcher, limits: Limits | None, settings: Any) -> None:
        self.lab = lab
        self.records: list[Record] = []
        self.errors: list[logging.LogRecord] = []
        """What the gate itself has logged as an error. To be cleared by a test that breaks the gate."""
        self.audit = Audit(self._note)
        chosen = {"name_servers": (lab.nameserver,), "limits": limits or Limits()} | settings
        self._embedded = EmbeddedGate(Settings(**chosen), self.audit)
        self._launcher = launcher
        self._inmates: dict[str, Inmate] = {}
        self._noted = asyncio.Event()
        self._handler = _Errors(self.errors)

    @property
    def gate(self) -> Gate:
        return self._embedded.gate

    @classmethod
    async def open(
        cls, lab: Lab, launcher: Launcher, *, limits: Limits | None = None, **settings: Any
    ) -> Self:
        arena = cls(lab, launcher, limits, settings)
        arena._embedded.start()
        logging.getLogger().addHandler(arena._handler)
        return arena

    async def close(self) -> None:
        logging.getLogger().removeHandler(self._handler)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._embedded.close)
            for inmate in self._inmates.values():
                stack.push_async_callback(inmate.box.close)
                stack.push_async_callback(inmate.attacker.close)

    def gated(self, inmate: Inmate) -> GatedBox:
        """The box as the gate sees it."""
        return self.gate.boxes[inmate.id]

    def put_policy(self, inmate: Inmate, policy: object) -> int:
        """Replace a box's policy; returns how many connections that has cut."""
        generation = self.gated(inmate).generation + 1
        return self.gate.put_policy(inmate.id, self.gate.compile(NetworkPolicy.parse(policy)), generation)

    async def inmate(self, policy: object = CUSTOM, id: str | None = None, **spec: Any) -> Inmate:
        """The box of that id, or the one for that policy, made (see ``BoxSpec``) if there is none yet."""
        id = id or f"box-{len(self._inmates)}"
        for known in self._inmates.values():
            if self.gated(known).policy.policy == NetworkPolicy.parse(policy) and id.startswith("box-"):
                return known
        box = await self._launcher.create(BoxSpec(id, **spec))
        self.gate.put_policy(id, self.gate.compile(NetworkPolicy.parse(policy)))
        listeners = box.listeners
        self.gate.serve(id, tcp=listeners.tcp, dns_udp=listeners.dns_udp, dns_tcp=listeners.dns_tcp)
        agent, attacker = await start_agent(box)
        self._inmates[id] = inmate = Inmate(id, box, agent, attacker)
        return inmate

    async def dismiss(self, inmate: Inmate) -> None:
        """Close a box, and have the gate forget it."""
        del self._inmates[inmate.id]
        await inmate.attacker.close()
        await inmate.box.close()
        self.gate.drop(inmate.id)

    async def run(self, attack: Attack) -> Report:
        """Carry an attack out in a box with its policy, wait until the gate is at rest, and judge it."""
        inmate = await self.inmate(attack.policy)
        self.begin(inmate)
        for name, answers in attack.zone.items():
            self.lab.dns.set(name, **answers)
        seen = await attack.act(inmate.attacker)
        if attack.must_arrive:
            return await judge(self.lab, attack, seen, inmate.attacker.nonce)
        await inmate.attacker.do("release")
        await self.rest(inmate)
        return await judge(self.lab, attack, seen, inmate.attacker.nonce)

    def begin(self, inmate: Inmate) -> None:
        """Forget all that was seen and recorded so far: a new attack."""
        self.lab.reset()
        self.records.clear()
        inmate.attacker.new_nonce()
        # What the last test has had resolved must not spare this one's question.
        self.gate.resolver._cache.clear()

    async def contains(self, attack: Attack) -> Report:
        """Carry an attack out: nothing gets out, and the client and the records say what they should."""
        report = await self.run(attack)
        if attack.must_arrive:
            await (await self.inmate(attack.policy)).attacker.do("release")
        shown = f"seen: {report.seen}, records: {[(r.reason.value, r.detail) for r in self.records]}"
        assert report.outcome is Outcome.CONTAINED, f"{report.outcome}: {list(report.evidence)}; {shown}"
        if attack.sees is not None:
            assert str(report.seen) == attack.sees, shown
        if attack.reasons is not None:
            assert self.denials() == sorted(attack.reasons), shown
        assert [record.getMessage() for record in self.errors] == [], "the gate itself has failed"
        assert self.lab.faults() == []
        return report

    def denials(self) -> list[Reason]:
        """The reasons of the denials that were recorded, sorted."""
        return sorted(record.reason for record in self.records if not record.allowed)

    async def rest(self, inmate: Inmate) -> None:
        """Wait until nothing is open on behalf of a box: what is still to happen has happened."""
        gated = self.gated(inmate)
        async with asyncio.timeout(PATIENCE + 10):
            while gated.live or gated.asking or gated.questions:
                await asyncio.sleep(0.01)  # the gate announces the end of what is no record in no other way

    async def recorded(self, reason: Reason) -> Record:
        """The first record with a reason, waited for."""
        async with asyncio.timeout(PATIENCE + 10):
            while True:
                for record in self.records:
                    if record.reason is reason:
                        return record
                self._noted.clear()
                await self._noted.wait()

    def _note(self, record: Entry) -> None:
        if isinstance(record, Record):
            self.records.append(record)
        self._noted.set()


class _Errors(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.ERROR)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


async def start_agent(box: Box, python: str | None = None) -> tuple[Program, Attacker]:
    """Start the agent in a box, as its root."""
    python = python or interpreter()
    assert python is not None, "no python3 in a system directory, so none in a box"
    task_reader, task_writer = os.pipe()
    answer_reader, answer_writer = os.pipe()
    try:
        agent = await box.start(
            ProgramSpec((python, "-I", "-u", "-c", AGENT), stdin=task_reader, stdout=answer_writer)
        )
    except BaseException:
        os.close(task_writer)
        os.close(answer_reader)
        raise
    finally:
        os.close(task_reader)
        os.close(answer_writer)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LONGEST_LINE)
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(answer_reader, "rb", 0)
    )
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(task_writer, "wb", 0)
    )
    return agent, Attacker(StreamChannel(reader, asyncio.StreamWriter(transport, protocol, None, loop)))


def ids(attacks: Sequence[Attack]) -> list[str]:
    """The names of attacks, as pytest's ids."""
    return [attack.name for attack in attacks]
