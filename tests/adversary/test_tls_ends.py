"""How a refused connection ends: told why, in time, and at a bounded cost."""

import asyncio

import pytest

from box_policy.gate.limits import Limits
from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena
from tests.adversary.attack import EVIL, Attack
from tests.adversary.conftest import OpenArena
from tests.adversary.hostile_hellos import ALLOWED
from tests.adversary.wire import hello, sends, tls
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestDeadline:
    async def test_of_a_hello_that_never_ends(self, open_arena: OpenArena) -> None:
        """It counts from accept, whatever still trickles in."""
        arena = await open_arena(limits=Limits(verdict_timeout=0.4))
        inmate = await arena.inmate()
        line = await inmate.attacker.connect(plan.ALLOWED4, 443)
        sending = asyncio.create_task(line.send(hello(inmate.attacker, ALLOWED)[:60], segment=1, pause=0.04))
        seen = await line.see()
        assert (str(seen), seen.ended) == ("alert 49", "eof")
        assert 0.3 < seen.seconds < 1.5
        await line.close()
        await sending
        assert arena.denials() == [Reason.TIMEOUT]
        assert arena.lab.packets() == []

    async def test_of_a_client_that_waits_for_the_server_to_speak(self, open_arena: OpenArena) -> None:
        """As one of SMTP or IMAP does, which may get to TLS later: no name, so nothing is dialled."""
        arena = await open_arena(limits=Limits(verdict_timeout=0.4))
        inmate = await arena.inmate()
        line = await inmate.attacker.connect(plan.ALLOWED4, 25)
        assert str(await line.see()) == "reset"
        await line.close()
        assert arena.denials() == [Reason.TIMEOUT]
        assert arena.lab.packets() == []

    async def test_of_a_server_that_does_not_answer(self, open_arena: OpenArena) -> None:
        arena = await open_arena(limits=Limits(connect_timeout=0.3))
        attack = Attack(
            name="", act=tls(plan.ALLOWED4, ALLOWED, plan.SILENT_PORT), sees="alert 80", reasons=()
        )
        await arena.contains(attack)
        assert [record.reason for record in arena.records] == [Reason.NAME_ALLOWED, Reason.UPSTREAM_FAILED]


class TestFarewell:
    async def test_lets_a_client_go_on_sending(self, arena: Arena) -> None:
        """One that is still sending would hear of a broken connection, and never read why."""
        inmate = await arena.inmate()
        arena.begin(inmate)
        line = await inmate.attacker.connect(plan.EVIL4, 443)
        assert await line.send(hello(inmate.attacker, EVIL) + bytes(100_000)) is None
        assert str(await line.read(size=7)) == "alert 49"
        assert [await line.send(bytes(100_000)) for _ in range(3)] == [None] * 3
        assert str(await line.see()) == "eof"
        await line.close()
        await arena.rest(inmate)
        assert arena.lab.packets() == []

    async def test_does_not_take_whatever_a_client_sends(self, arena: Arena) -> None:
        attack = Attack(
            name="",
            act=sends(plan.EVIL4, 443, lambda box: hello(box, EVIL) + bytes(20_000_000)),
            sees="alert 49",
            reasons=(Reason.NAME_NOT_ALLOWED,),
        )
        report = await arena.contains(attack)
        assert report.seen is not None
        assert report.seen.ended == "reset"

    async def test_does_not_wait_for_a_client_that_does_not_leave(self, open_arena: OpenArena) -> None:
        arena = await open_arena(limits=Limits(linger=0.3))
        inmate = await arena.inmate()
        line = await inmate.attacker.connect(plan.EVIL4, 443)
        await line.send(hello(inmate.attacker, EVIL))
        assert str(await line.see()) == "alert 49"
        await arena.rest(inmate)
        await line.close()
