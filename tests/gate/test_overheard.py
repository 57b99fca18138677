"""The name in a hello that goes by: what a later policy makes of it, and what it may cost."""

import asyncio

import pytest

from box_policy.audit.records import Event
from box_policy.gate.dial import Relayed
from box_policy.gate.limits import Limits
from tests.gate.conftest import BOX, Client, GateUnderTest, MakeGate
from tests.gate.test_policy_change import ONLY_CIDR, ONLY_NAME, ONLY_WILD, cut, is_alive, without
from tests.gate.test_policy_change_dns import impatient, nothing_is_asked
from tests.lab import Lab, plan
from tests.lab.hellos import client_hello, handshake, records

__all__ = ["impatient"]

UNFINISHED = {
    "in one record": records(bytes([1]) + (60_000).to_bytes(3) + bytes(16_380)),
    "in long records": records(handshake(bytes(60_000)))[:-1],
    "in short records": records(handshake(bytes(20_000)), 1)[:-1],
}
MOST_HELD = 20 * 1024
MOST_RESOLVED = 16


async def heard(gate: GateUnderTest, data: bytes, address: str = plan.ALLOWED4) -> Client:
    """A connection whose first bytes the gate has relayed, and the origin has sent back."""
    client = await gate.claim(address, plan.ECHO_PORT)
    await exchange(client, data)
    return client


async def exchange(client: Client, data: bytes) -> None:
    client.writer.write(data)
    async with asyncio.timeout(5):
        await client.reader.readexactly(len(data))


def listening(gate: GateUnderTest) -> tuple[bool, int]:
    """Of the one connection: is there more to hear, and how many bytes does the gate keep?"""
    (relayed,) = gate.embedded.gate.boxes[BOX].live
    assert isinstance(relayed, Relayed)
    assert relayed._pair is not None
    assert relayed._overheard is not None
    return relayed._pair.up.listener is not None, len(relayed._overheard._reader.received)


async def resolved(gate: GateUnderTest) -> None:
    """The name that was overheard is."""
    resolver = gate.embedded.gate.resolver
    await resolver.addresses("allowed.test")
    await asyncio.gather(*resolver._tasks)


def hello_of(number: int) -> bytes:
    return client_hello(f"{number}.slow.test".encode())


class TestLaterPolicy:
    @pytest.mark.parametrize(
        "before",
        [
            "allow-all",
            {"mode": "custom", "denied_cidrs": [plan.CIDR]},
            {**without(plan.EVIL4), "allowed_cidrs": [f"{plan.ALLOWED4}/32"]},
        ],
    )
    @pytest.mark.parametrize("split", [1000, 1])
    async def test_goes_on_by_the_name(
        self, make_gate: MakeGate, lab: Lab, before: object, split: int
    ) -> None:
        gate = make_gate(before)
        hello = client_hello()
        client = await heard(gate, hello[:split])
        for start in range(split, len(hello), split):
            await exchange(client, hello[start : start + split])
        await resolved(gate)
        assert gate.put_policy(ONLY_NAME) == 0
        assert await is_alive(client)
        assert gate.put_policy(ONLY_WILD) == 1
        assert (await gate.end()).name == "allowed.test"

    async def test_cuts_what_goes_to_another_host_than_it_named(self, make_gate: MakeGate) -> None:
        gate = make_gate("allow-all")
        client = await heard(gate, client_hello(), plan.EVIL4)
        await resolved(gate)
        record = await cut(gate, client, ONLY_NAME, Event.END)
        assert (record.name, record.mismatch) == ("allowed.test", True)

    @pytest.mark.parametrize(
        "first", [b"", b"\x16", b"hello", client_hello(None), client_hello(b"bad..name")]
    )
    async def test_cuts_what_has_no_name(self, make_gate: MakeGate, lab: Lab, first: bytes) -> None:
        gate = make_gate("allow-all")
        client = await heard(gate, first + b"x")
        await cut(gate, client, ONLY_NAME, Event.END)
        assert lab.dns.questions == []


class TestQuestions:
    async def test_a_name_that_may_not_be_asked_for_is_not(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate(ONLY_CIDR)
        client = await heard(gate, client_hello(b"secret.evil.test"), plan.CIDR4)
        client.end()
        await client.read()
        assert (await gate.end()).name == "secret.evil.test"
        assert lab.dns.questions == []

    async def test_at_most_sixteen_names_of_a_box_at_once(self, make_gate: MakeGate, lab: Lab) -> None:
        policy = {**ONLY_CIDR, "allowed_domains": ["allowed.test", "*.slow.test"]}
        gate = make_gate(policy, limits=Limits(resolving=2 * MOST_RESOLVED + 2))
        lab.dns.set("*.slow.test", silent=True)
        clients = [await heard(gate, hello_of(number), plan.CIDR4) for number in range(3 * MOST_RESOLVED)]
        await lab.expect_async(lambda: len({asked.name for asked in lab.dns.questions}) == MOST_RESOLVED)
        another = await gate.claim(plan.ALLOWED4, 443)
        await another.send(client_hello())
        await lab.expect_async(lambda: lab.connections(plan.ALLOWED4), timeout=0.5)
        assert len({asked.name for asked in lab.dns.questions} - {"allowed.test"}) == MOST_RESOLVED
        for client in clients:
            client.writer.transport.abort()

    async def test_the_next_names_are_resolved_after_the_first(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate("allow-all")
        lab.dns.set("*.slow.test", A=[plan.EVIL4], delay=0.2)
        for number in range(MOST_RESOLVED):
            await heard(gate, hello_of(number))
        await lab.expect_async(lambda: len({asked.name for asked in lab.dns.questions}) == MOST_RESOLVED)
        await nothing_is_asked(gate)
        await asyncio.sleep(0)
        assert gate.embedded.gate.boxes[BOX].overheard == 0
        await heard(gate, hello_of(MOST_RESOLVED))
        await lab.expect_async(lambda: len({asked.name for asked in lab.dns.questions}) > MOST_RESOLVED)

    @pytest.mark.usefixtures("impatient")
    @pytest.mark.parametrize("ends", [True, False])
    async def test_stop_when_the_connection_ends(self, make_gate: MakeGate, lab: Lab, ends: bool) -> None:
        gate = make_gate("allow-all", name_servers=(lab.nameserver, lab.nameserver6))
        lab.dns.set("0.slow.test", silent=True)
        client = await heard(gate, hello_of(0))
        await lab.expect_async(lambda: lab.dns.questions)
        if ends:
            client.writer.transport.abort()
            await gate.end()
        await nothing_is_asked(gate)
        assert bool(lab.packets(lab.nameserver6)) is not ends


class TestUnfinishedHello:
    @pytest.mark.parametrize("pieces", [1, 5, 500])
    @pytest.mark.parametrize("wire", UNFINISHED.values(), ids=UNFINISHED)
    async def test_holds_little(self, make_gate: MakeGate, wire: bytes, pieces: int) -> None:
        gate = make_gate("allow-all")
        client = await gate.claim(plan.ALLOWED4, plan.ECHO_PORT)
        size = len(wire) // pieces + 1
        for start in range(0, len(wire), size):
            await exchange(client, wire[start : start + size])
            listens, held = listening(gate)
            assert held <= MOST_HELD
        assert not listens

    async def test_is_given_up_after_the_time_for_a_verdict(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate("allow-all")
        lane = gate.embedded.gate.lane
        lane.overhearing._seconds = 0
        hello = client_hello()
        client = await heard(gate, hello[:30])
        assert len(list(lane.overhearing)) == 1
        lane.sweep()
        assert len(list(lane.overhearing)) == 0
        await exchange(client, hello[30:])
        client.end()
        await client.read()
        assert (await gate.end()).name is None
        assert lab.dns.questions == []

    async def test_is_listened_to_no_longer_once_it_is_over(self, make_gate: MakeGate) -> None:
        gate = make_gate("allow-all")
        client = await heard(gate, client_hello()[:30])
        client.end()
        await client.read()
        await gate.end()
        assert len(list(gate.embedded.gate.lane.overhearing)) == 0
