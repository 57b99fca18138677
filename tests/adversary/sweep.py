"""Every exchange, over and over, with a fault at each place that it passes; and what must hold each time."""

import asyncio
import gc
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Final

from box_policy.policy.model import NetworkPolicy
from box_policy.policy.reasons import Reason
from tests.adversary.attack import CUSTOM
from tests.adversary.exchanges import REFUSED, Exchange
from tests.adversary.faults import InjectedFault, Place, fault, observed
from tests.adversary.rig import BOX, Rig
from tests.lab import Lab, plan

ROOMS: Final = ("gate/", "policy/", "wire/", "audit/", "control/store.py")
_DENIALS: Final = frozenset(
    {"alert 49", "alert 80", "http 403", "http 502", "http 400", "reset", "eof", "REFUSED", "SERVFAIL"}
)
"""What a client may see of a denial, whatever it asked for."""
_NO_INTERNAL_ERROR: Final = "no record says internal_error"
_NO_DENIAL: Final = "no record of the denial"
_OF_RECORDS: Final = (_NO_INTERNAL_ERROR, _NO_DENIAL)
_RECORDING: Final = (
    "audit/",
    "gate/claim.py Claim.decision",
    "gate/claim.py Claim.end",
    "gate/claim.py Claim._recorded_name",
    "gate/claim.py failure_record",
    "gate/dns.py _record_of",
    "gate/arrival.py Arrival._end.<locals>",
    "gate/http.py HttpHandler._record",
    "gate/boxes.py GatedBox.record_end",
    "gate/dial.py Dial._record_end",
    "gate/dial.py Relayed._record_end",
    "gate/http_upstreams.py Upstreams.received",
    "gate/lane.py Listener.ready",
)
"""Where a failure may cost the record itself."""
_INFALLIBLE: Final = frozenset(
    {
        "gate/dial.py Relayed._closed",
        "gate/overheard.py Overheard._resolved",
        "gate/rounds.py Rounds._next",
        "gate/turns.py Turns.give_back",
        "gate/reset.py reset",
        "gate/boxes.py GatedBox.cut_all",
        "gate/lane.py Lane.leave",
        "gate/gate.py Gate._forget",
        "gate/gate.py Gate._forget.<locals>.<genexpr>",
        "gate/dns.py DnsServer.forget",
    }
)
"""Where only numbers, sets and queues are put right: nothing there can fail."""
_UNREGISTER: Final = ("gate/poller.py Poller.unregister", "gate/arrival.py Arrival._leave")
_LEFT: Final = "left behind"
_GUARDS: Final = frozenset(
    {
        # Called by the event loop itself.
        "gate/lane.py Lane.run_ready",
        "gate/poller.py Poller.run_ready",
        "gate/poller.py Poller._run",
        "gate/lane.py Lane.sweep",
        "gate/lane.py Lane.sweep.<locals>.<genexpr>",
        "gate/gate.py Gate._sweep",
        "gate/dns.py DnsServer._read_datagrams",
        "gate/dns.py DnsServer._accept",
        "gate/dns.py DnsServer._ended",
        "gate/dns.py _answered",
        "gate/dns.py _Visit.leave",
        "gate/http_door.py _Visit.leave",
        "gate/resolver.py Resolver._asked",
        "gate/resolver.py Resolver._resolved",
        # The first of a task, and nothing but what guards the rest.
        "gate/dns.py DnsServer._answer_datagram",
        "gate/dns.py DnsServer._answer",
        "gate/http_dialling.py DiallingHandler.open_connection",
        "gate/http.py HttpHandler.handle_hook",
        "gate/http.py HttpHandler.log",
        "gate/http.py HttpHandler.cancelled",
        # These are what guards.
        "gate/failures.py attempt",
        "gate/failures.py every",
        "gate/lane.py Lane.adopt",
        "gate/arrival.py Arrival._resolved",
        # A datagram that isn't sent is a datagram lost.
        "gate/dns.py _send",
    }
)
"""Where nothing is left that could notice. Even so a failure must not let anything through."""
_GRAVE: Final = ("reached", "asked", "dialled", "the secret", "afterwards", "still open")
_NAME_SERVERS: Final = frozenset({plan.NAMESERVER4, plan.NAMESERVER6})


@dataclass
class Run:
    """What came of one run of an exchange."""

    seen: list[str] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    """Of every record, in order."""
    denials: list[Reason] = field(default_factory=list)
    dialled: set[str] = field(default_factory=set)
    """Addresses, other than name servers'."""
    raised: bool = False
    """The fault has happened."""
    wrong: list[str] = field(default_factory=list)
    """What must not be, in words."""


class Sweep:
    """Runs exchanges on a gate, which is replaced once it has been found damaged."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._rig: Rig | None = None

    async def close(self) -> None:
        if self._rig is not None:
            await self._rig.close()
            self._rig = None

    async def places(
        self, exchange: Exchange, *, lines: bool = False, rooms: tuple[str, ...] = ROOMS
    ) -> dict[Place, int]:
        """What the exchange passes when nothing fails, and how often."""
        await self.run(exchange, nullcontext())  # what is imported or made once, has been
        run, places = await self.run(exchange, observed(rooms, lines=lines))
        assert not run.wrong and run.seen == list(exchange.sees), (str(exchange), run)
        return {place: count for place, count in places.items() if place.where not in _INFALLIBLE}

    async def inject(
        self,
        exchange: Exchange,
        place: Place,
        call: int | None = 1,
        error: Callable[[], BaseException | None] = InjectedFault,
    ) -> Run:
        """Run it with a fault, and say what came of it."""
        run, injection = await self.run(exchange, fault(place, call, error=error))
        run.raised = injection.raised
        where = place.where
        if where.startswith(_RECORDING):
            run.wrong = [wrong for wrong in run.wrong if wrong not in _OF_RECORDS]
        if place.line:
            # Between two lines of a function that lets go nothing can fail; it would have let go of the rest.
            run.wrong = [wrong for wrong in run.wrong if not wrong.startswith(_LEFT)]
        if where in _UNREGISTER:
            # Of a socket that is closed since: until its number is given out again.
            run.wrong = [
                wrong for wrong in run.wrong if not wrong.startswith(_LEFT) or "'poller'" not in wrong
            ]
        if where in _GUARDS:
            run.wrong = [wrong for wrong in run.wrong if wrong.startswith(_GRAVE)]
            await self.close()
        return run

    async def run[Watching](
        self, exchange: Exchange, watching: AbstractContextManager[Watching]
    ) -> tuple[Run, Watching]:
        """Run it while something watches, or interferes."""
        rig = await self._ready(exchange)
        run, watched = await self._run(rig, exchange, watching)
        if run.wrong:
            await self.close()
        return run, watched

    async def _ready(self, exchange: Exchange) -> Rig:
        if self._rig is None:
            self._rig = await Rig.open(self._lab)
            idle = self._rig.state()
            await self._rig.works()
            self._rig.release()
            await self._rig.rest(idle)
            gc.collect()
            gc.freeze()
        rig = self._rig
        rig.begin()
        return rig

    async def _restore(self, rig: Rig) -> None:
        rig.release()
        if BOX not in rig.store:
            rig.gate.drop(BOX)
            rig.store.create(BOX, NetworkPolicy.parse(CUSTOM), source="test")
            rig.serve(BOX)
        elif not rig.is_listening():
            rig.gate.leave(BOX)
            rig.serve(BOX)
        await rig.store.put(BOX, NetworkPolicy.parse(CUSTOM), source="test")

    async def _run[Watching](
        self, rig: Rig, exchange: Exchange, watching: AbstractContextManager[Watching]
    ) -> tuple[Run, Watching]:
        run = Run()
        broken: list[str] = []
        hook, sys.unraisablehook = sys.unraisablehook, lambda it: broken.append(repr(it.exc_value))
        before = await self._at_rest(rig)
        try:
            if exchange.prepare is not None:
                await exchange.prepare(rig)
                rig.records.clear()
            with watching as watched:
                seen = await exchange.act(rig)
                await asyncio.sleep(0)
                rig.release()
                await self._settle(rig, before)
            for _ in range(100 * exchange.tightens):
                if len(rig.records) >= len(exchange.sees):
                    break
                await asyncio.sleep(0.01)  # one that waits for an answer says so once it has that
            run.seen = [str(word) for word in seen]
            run.reasons = [record.reason for record in rig.records]
            run.denials = [record.reason for record in rig.records if not record.allowed]
            self._judge(rig, exchange, run)
            await self._restore(rig)
            gc.collect()
            if differing := await rig.rest(before):
                run.wrong.append(f"{_LEFT}: {differing}")
            if failure := await rig.works():
                run.wrong.append(f"afterwards fails {failure}")
            rig.release()
            if differing := await rig.rest(before):
                run.wrong.append(f"{_LEFT} later: {differing}")
            gc.collect()
            run.wrong += [f"nobody's: {what}" for what in [*rig.unhandled, *broken]]
        finally:
            sys.unraisablehook = hook
        return run, watched

    async def _at_rest(self, rig: Rig) -> dict[str, int]:
        while True:
            before = rig.state()
            await asyncio.sleep(0.001)
            if rig.state() == before:
                return before

    async def _settle(self, rig: Rig, before: dict[str, int]) -> None:
        """Let what the clients have left come to its end under the fault as well."""
        for _ in range(20):
            if rig.state() == before:
                return
            await asyncio.sleep(0.001)

    def _judge(self, rig: Rig, exchange: Exchange, run: Run) -> None:
        lab, wrong = rig.lab, run.wrong
        if run.seen == ["torn"]:
            wrong.append("the store and the gate differ")
        for step, (word, expected) in enumerate(zip(run.seen, exchange.sees, strict=False)):
            if word == "silence" and expected != "silence":
                wrong.append(f"step {step}: the client was left hanging")
            elif word != expected and word not in {*_DENIALS, REFUSED}:
                wrong.append(f"step {step}: the client saw {word}")
        if len(run.seen) < len(exchange.sees) and run.seen[-1] not in {*_DENIALS, "silence", REFUSED}:
            wrong.append(f"the client saw {run.seen}")
        if exchange.tightens:
            if run.seen == [REFUSED]:
                return
            self._judge_records(exchange, run)
            open_ones = [c for c in lab.connections() if c.closed is None]
            if open_ones:
                wrong.append(f"still open at the origin: {[(c.address, c.port) for c in open_ones]}")
            return
        run.dialled = {p.address for p in lab.packets() if p.flags == "S" and p.port != plan.DNS_PORT}
        reached = {p.address for p in lab.packets() if p.protocol != "icmpv6"} - _NAME_SERVERS
        if reached - exchange.may_reach:
            wrong.append(f"reached: {reached - exchange.may_reach}")
        asked = {question.name for question in lab.dns.questions}
        if asked - exchange.may_ask:
            wrong.append(f"asked: {asked - exchange.may_ask}")
        if run.dialled and not any(record.allowed for record in rig.records):
            wrong.append(f"dialled without a record of it: {run.dialled}")
        if not exchange.may_reach and any(rig.nonce.encode() in c.received for c in lab.connections()):
            wrong.append("the secret got out")
        self._judge_records(exchange, run)

    def _judge_records(self, exchange: Exchange, run: Run) -> None:
        """One denial for each that there is; and an internal error if anything came out differently."""
        wrong = run.wrong
        if exchange.tightens:
            if len(run.reasons) < len(exchange.sees) - 1:  # a fault may cost one record
                wrong.append(_NO_DENIAL)
            return
        if run.seen != list(exchange.sees):
            # Or the denial had its reason already, when it could not be told.
            if Reason.INTERNAL_ERROR not in run.reasons and run.denials != list(exchange.reasons):
                wrong.append(_NO_INTERNAL_ERROR)
        elif exchange.reasons and not run.denials:
            wrong.append(_NO_DENIAL)
        if len(run.denials) > max(1, len(exchange.reasons), sum(word in _DENIALS for word in run.seen)):
            wrong.append(f"{len(run.denials)} denials recorded: {run.denials}")


def calls_of(count: int, most: int) -> Iterable[int]:
    """The calls of a place that are made to fail."""
    return range(1, min(count, most) + 1)
