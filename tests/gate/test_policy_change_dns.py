"""A new policy and names: what is asked no more, and where a claim of a name goes on to."""

import asyncio

import dnslib
import pytest

from box_policy.gate.limits import Limits
from box_policy.policy.reasons import Reason
from tests.gate.conftest import BOX, POLICY, GateUnderTest, MakeGate
from tests.gate.test_dns import Asker
from tests.gate.test_http import request
from tests.gate.test_policy_change import ALERT_ACCESS_DENIED, ONLY_NAME, ONLY_WILD, PROMPTLY, without
from tests.lab import Lab, plan
from tests.lab.hellos import client_hello

ELSEWHERE = "51.81.10.99"
"""An address of no name."""


async def nothing_is_asked(gate: GateUnderTest) -> None:
    """The resolver has come to the end of all it had to ask."""
    resolver = gate.embedded.gate.resolver
    async with asyncio.timeout(5):
        while resolver._asking:
            await asyncio.gather(*(asking.task for asking in resolver._asking.values()))
            await asyncio.sleep(0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next name server is asked soon."""
    monkeypatch.setattr("box_policy.gate.resolver._ATTEMPT_TIMEOUT", 0.2)


class TestNotAsked:
    @pytest.mark.parametrize("turns", range(10))
    @pytest.mark.parametrize("kind", ["TLS", "HTTP", "UDP", "TCP"])
    async def test_after_a_change_at_any_turn(
        self, gate: GateUnderTest, lab: Lab, kind: str, turns: int
    ) -> None:
        lab.dns.set("secret.wild.test", A=[plan.WILDCARD4], delay=0.05)  # not within these turns
        asker = Asker(gate)
        asking: asyncio.Task[dnslib.DNSRecord] | None = None
        if kind in ("UDP", "TCP"):
            asking = asyncio.create_task(asker.ask("secret.wild.test", tcp=kind == "TCP"))
        else:
            first = client_hello(b"secret.wild.test") if kind == "TLS" else request("secret.wild.test")
            client = await gate.claim(plan.WILDCARD4, 443 if kind == "TLS" else 80)
            await client.send(first)
            gate.embedded.gate.lane.run_ready()
        for _ in range(turns):
            await asyncio.sleep(0)
        gate.put_policy("deny-all")
        before = len(lab.packets(port=53))
        if asking is not None:
            assert (await asking).header.rcode == dnslib.RCODE.REFUSED
        else:
            assert await client.is_reset()
        await nothing_is_asked(gate)
        assert len(lab.packets(port=53)) == before

    @pytest.mark.parametrize(("policy", "asked"), [("deny-all", False), (without(plan.EVIL4), True)])
    async def test_of_the_second_server(
        self, make_gate: MakeGate, lab: Lab, impatient: None, policy: object, asked: bool
    ) -> None:
        gate = make_gate(name_servers=(lab.nameserver, lab.nameserver6))
        lab.dns.set("silent.wild.test", silent=True)
        asking = asyncio.create_task(Asker(gate).ask("silent.wild.test"))
        await lab.expect_async(lambda: lab.dns.questions)
        gate.put_policy(policy)
        await nothing_is_asked(gate)
        await asking
        assert bool(lab.packets(lab.nameserver6)) is asked

    @pytest.mark.parametrize(("policy", "asked"), [("deny-all", False), (without(plan.EVIL4), True)])
    async def test_once_more_over_tcp(
        self, gate: GateUnderTest, lab: Lab, policy: object, asked: bool
    ) -> None:
        lab.dns.set("long.wild.test", A=[plan.WILDCARD4], truncate=True, delay=0.1)
        asking = asyncio.create_task(Asker(gate).ask("long.wild.test"))
        await lab.expect_async(lambda: lab.dns.questions)
        gate.put_policy(policy)
        await nothing_is_asked(gate)
        await asking
        assert any(packet.length for packet in lab.packets(port=53, protocol="tcp")) is asked

    async def test_while_it_waits_for_its_turn(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate(limits=Limits(resolving=4))
        lab.dns.set("*.wild.test", A=[plan.WILDCARD4], delay=0.2)
        asker = Asker(gate)
        asking = [asyncio.create_task(asker.ask(f"{number}.wild.test")) for number in range(20)]
        await lab.expect_async(lambda: len(lab.dns.questions) == 4)
        async with asyncio.timeout(PROMPTLY):
            while len(gate.embedded.gate.boxes[BOX].asking) < 20:
                await asyncio.sleep(0)
        assert gate.put_policy("deny-all") == 20
        async with asyncio.timeout(PROMPTLY):
            replies = await asyncio.gather(*asking)
        assert {reply.header.rcode for reply in replies} == {dnslib.RCODE.REFUSED}
        await nothing_is_asked(gate)
        assert len(lab.packets(port=53)) == 4

    async def test_unless_another_box_waits_for_it_too(
        self, make_gate: MakeGate, lab: Lab, impatient: None
    ) -> None:
        gate = make_gate(name_servers=(plan.SILENT4, lab.nameserver))
        gate.put_policy(POLICY, "other")
        asking = asyncio.create_task(Asker(gate).ask("a.wild.test"))
        await lab.expect_async(lambda: lab.packets(plan.SILENT4))
        theirs = await gate.claim(plan.WILDCARD4, 443, "other")
        await theirs.send(client_hello(b"a.wild.test"))
        gate.embedded.gate.lane.run_ready()
        await asyncio.sleep(0)
        assert gate.put_policy("deny-all") == 1
        assert (await asking).header.rcode == dnslib.RCODE.REFUSED
        await lab.expect_async(lambda: lab.connections(plan.WILDCARD4))


class TestGoesOn:
    @pytest.mark.parametrize(("port", "hello"), [(443, True), (80, False)])
    async def test_by_its_address_while_its_name_is_resolved(
        self, gate: GateUnderTest, lab: Lab, port: int, hello: bool
    ) -> None:
        lab.dns.set("slow.wild.test", A=[plan.WILDCARD4], delay=0.2)
        client = await gate.claim(plan.WILDCARD4, port)
        await client.send(client_hello(b"slow.wild.test") if hello else request("slow.wild.test"))
        await lab.expect_async(lambda: lab.dns.questions)
        assert gate.put_policy({"mode": "custom", "allowed_cidrs": [f"{plan.WILDCARD4}/32"]}) == 0
        async with asyncio.timeout(5):
            first = await client.reader.readexactly(len(ALERT_ACCESS_DENIED))
        assert first == b"HTTP/1." if not hello else first.startswith(b"\x16\x03")
        record = await gate.decision()
        assert (record.reason, record.dialled) == (Reason.CIDR_ALLOWED, plan.WILDCARD4)

    @pytest.mark.parametrize(("port", "hello"), [(443, True), (80, False)])
    async def test_by_its_address_and_not_by_a_false_name(
        self, gate: GateUnderTest, lab: Lab, port: int, hello: bool
    ) -> None:
        """Nobody has looked yet whether the name is true."""
        lab.dns.set("slow.wild.test", A=[plan.WILDCARD4], delay=0.2)
        client = await gate.claim(plan.EVIL4, port)
        await client.send(client_hello(b"slow.wild.test") if hello else request("slow.wild.test"))
        await lab.expect_async(lambda: lab.dns.questions)
        assert gate.put_policy({"mode": "custom", "allowed_cidrs": [f"{plan.EVIL4}/32"]}) == 0
        async with asyncio.timeout(5):
            assert await client.reader.readexactly(1)
        assert gate.put_policy(ONLY_WILD) == 1
        assert await client.is_reset()
        await lab.expect_async(lambda: lab.connections(plan.EVIL4)[0].closed == "reset")

    @pytest.mark.parametrize(("port", "hello"), [(443, True), (80, False)])
    async def test_to_the_next_address_of_its_name(
        self, gate: GateUnderTest, lab: Lab, port: int, hello: bool
    ) -> None:
        lab.dns.set("two.wild.test", A=[plan.SILENT4, plan.EVIL4, plan.WILDCARD4])
        client = await gate.claim(ELSEWHERE, port)
        await client.send(client_hello(b"two.wild.test") if hello else request("two.wild.test"))
        await lab.expect_async(lambda: lab.packets(plan.SILENT4, port))
        denied = [f"{address}/32" for address in (plan.SILENT4, plan.EVIL4)]
        assert gate.put_policy({**POLICY, "denied_cidrs": denied}) == 0
        async with asyncio.timeout(1):  # far less than an address is given to answer
            assert await client.reader.readexactly(1)
        assert lab.connections(plan.WILDCARD4, port)
        assert len(lab.packets(plan.SILENT4)) == 1
        assert lab.packets(plan.EVIL4) == []

    async def test_nowhere_when_none_of_them_is_allowed(self, gate: GateUnderTest, lab: Lab) -> None:
        lab.dns.set("two.wild.test", A=[plan.SILENT4, plan.WILDCARD4])
        clients = [await gate.claim(ELSEWHERE, port) for port in (443, 80)]
        await clients[0].send(client_hello(b"two.wild.test"))
        await clients[1].send(request("two.wild.test"))
        await lab.expect_async(lambda: len(lab.packets(plan.SILENT4)) == 2)
        assert gate.put_policy(ONLY_NAME) == 2
        async with asyncio.timeout(PROMPTLY):
            assert all([await client.is_reset() for client in clients])
        assert lab.packets(plan.WILDCARD4) == []
