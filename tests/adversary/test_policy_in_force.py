"""Which policy judges a connection: its own box's, and the one in force when it is dialled."""

import asyncio
from typing import Final

import pytest

from box_policy.audit.records import Event
from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, Inmate
from tests.adversary.attack import CUSTOM
from tests.adversary.attacker import Seen
from tests.adversary.conftest import OpenArena
from tests.adversary.wire import hello, request
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestBoxes:
    """One gate, many boxes: each by its own policy."""

    async def test_what_one_box_may_reach_stays_closed_to_another(self, arena: Arena) -> None:
        allowed = await arena.inmate(CUSTOM)
        other = await arena.inmate({"mode": "custom", "allowed_domains": ["*.wild.test"]})
        arena.begin(allowed)
        open_line = await allowed.attacker.connect(plan.ALLOWED4, 443)
        await open_line.send(hello(allowed.attacker, b"allowed.test", random=bytes(32)))
        assert (await open_line.read(size=1)).kind == "data"
        seen = await other.attacker.exchange(plan.ALLOWED4, 443, hello(other.attacker, b"allowed.test"))
        assert str(seen) == "alert 49"
        seen = await other.attacker.exchange(plan.ALLOWED4, 443, b"RAW\0" + other.attacker.nonce.encode())
        assert str(seen) == "reset"
        await open_line.close()
        assert {record.box for record in arena.records if not record.allowed} == {other.id}
        assert len(arena.lab.connections()) == 1

    async def test_two_boxes_at_once(self, arena: Arena) -> None:
        """The same names, in turns: one box gets through, the other never does."""
        first = await arena.inmate(CUSTOM)
        second = await arena.inmate("deny-all")
        arena.begin(first)
        second.attacker.new_nonce()

        async def connect(inmate: Inmate, number: int) -> str:
            box = inmate.attacker
            if number % 2:
                data = request(box, b"allowed.test", more=b"Connection: close\r\n")
                return str(await box.exchange(plan.ALLOWED4, 80, data))
            line = await box.connect(plan.EVIL4, 443)
            await line.send(hello(box, b"allowed.test"))
            seen = await line.read(size=7)
            await line.close()
            return str(seen) if seen.kind != "data" else "data"

        seen = await asyncio.gather(
            *(connect(inmate, number) for number in range(40) for inmate in (first, second))
        )
        assert set(seen[0::2]) == {"data", "http 200"}
        assert set(seen[1::2]) == {"alert 49", "http 403"}
        decisions = [record for record in arena.records if record.event is Event.DECISION]
        assert {record.allowed for record in decisions if record.box == first.id} == {True}
        denials = [record for record in decisions if record.box == second.id]
        assert [record.reason for record in denials] == [Reason.DENY_ALL] * 40
        nonce = second.attacker.nonce.encode()
        assert not any(nonce in connection.received for connection in arena.lab.connections())


class TestPolicyChanges:
    """Between what was judged and what is dialled, the policy may change."""

    CLOSED: Final = {"mode": "custom", "allowed_domains": ["other.test"]}

    async def resolving(self, arena: Arena, data: bytes, inmate: Inmate) -> asyncio.Task[Seen]:
        """A connection whose name is being resolved."""
        arena.lab.dns.set("slow.wild.test", A=[plan.WILDCARD4], delay=0.4)
        port = 80 if data.startswith(b"GET") else 443
        seen = asyncio.create_task(inmate.attacker.exchange(plan.WILDCARD4, port, data))
        await arena.lab.expect_async(lambda: arena.lab.dns.questions)
        return seen

    @pytest.mark.parametrize("protocol", ["TLS", "HTTP"])
    async def test_to_one_that_denies(self, open_arena: OpenArena, protocol: str) -> None:
        arena = await open_arena()
        inmate = await arena.inmate()
        box = inmate.attacker
        data = hello(box, b"slow.wild.test") if protocol == "TLS" else request(box, b"slow.wild.test")
        seen = await self.resolving(arena, data, inmate)
        arena.put_policy(inmate, self.CLOSED)
        assert (await seen).kind == "reset"
        await arena.rest(inmate)
        assert arena.denials() == [Reason.POLICY_CHANGED]
        assert not arena.lab.connections()
        assert not arena.lab.packets(plan.WILDCARD4)

    async def test_to_one_that_denies_and_back(self, open_arena: OpenArena) -> None:
        """Allowed again before the answer comes: still the connection that was cut stays so."""
        arena = await open_arena()
        inmate = await arena.inmate()
        seen = await self.resolving(arena, hello(inmate.attacker, b"slow.wild.test"), inmate)
        arena.put_policy(inmate, "deny-all")
        arena.put_policy(inmate, CUSTOM)
        assert (await seen).kind == "reset"
        await arena.rest(inmate)
        assert not arena.lab.packets(plan.WILDCARD4)

    async def test_to_one_that_denies_the_address_alone(self, open_arena: OpenArena) -> None:
        arena = await open_arena()
        inmate = await arena.inmate()
        seen = await self.resolving(arena, hello(inmate.attacker, b"slow.wild.test"), inmate)
        arena.put_policy(inmate, {**CUSTOM, "denied_cidrs": [f"{plan.WILDCARD4}/32"]})
        assert (await seen).kind in ("reset", "alert")
        await arena.rest(inmate)
        assert not arena.lab.packets(plan.WILDCARD4)

    async def test_in_the_middle_of_a_hello(self, open_arena: OpenArena) -> None:
        """What counts is the policy when the name is whole."""
        arena = await open_arena()
        inmate = await arena.inmate()
        data = hello(inmate.attacker, b"a.wild.test")
        line = await inmate.attacker.connect(plan.WILDCARD4, 443)
        await line.send(data[:60])
        async with asyncio.timeout(5):
            while not arena.gated(inmate).pending:
                await asyncio.sleep(0.01)
        arena.put_policy(inmate, self.CLOSED)
        await line.send(data[60:])
        assert str(await line.see()) == "alert 49"
        await line.close()
        assert arena.denials() == [Reason.NAME_NOT_ALLOWED]
        assert arena.lab.packets() == []
