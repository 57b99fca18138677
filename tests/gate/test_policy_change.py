"""A new policy and what is open: what it no longer allows is cut on both sides, the rest loses nothing."""

import asyncio
import errno
import hashlib
import socket

import dnslib
import pytest

from box_policy.audit.records import Event, Record
from box_policy.policy.reasons import Reason
from tests.gate.conftest import BOX, POLICY, Client, GateUnderTest
from tests.gate.test_dns import Asker
from tests.gate.test_http import request
from tests.lab import Lab, plan
from tests.lab.hellos import client_hello

ALERT_ACCESS_DENIED = bytes.fromhex("15030300020231")
PROMPTLY = 0.1
"""Seconds within which what is no longer allowed has ended."""

ONLY_WILD = {"mode": "custom", "allowed_domains": ["*.wild.test"]}
ONLY_NAME = {"mode": "custom", "allowed_domains": ["allowed.test"]}
ONLY_CIDR = {"mode": "custom", "allowed_cidrs": [plan.CIDR]}
NOTHING = {"mode": "custom", "allowed_domains": []}


def without(address: str) -> dict[str, object]:
    return {**POLICY, "denied_cidrs": [f"{address}/32"]}


async def cut(gate: GateUnderTest, client: Client, policy: object, event: Event) -> Record:
    """Put the policy: the client is reset at once, and the record says why."""
    assert gate.put_policy(policy) == 1
    async with asyncio.timeout(PROMPTLY):
        assert await client.is_reset()
    record = await gate.record(lambda record: record.reason is Reason.POLICY_CHANGED)
    assert (record.event, record.generation) == (event, 2)
    return record


async def relayed(gate: GateUnderTest, box: str = BOX) -> Client:
    """A connection by address that has carried bytes both ways."""
    client = await gate.claim(plan.CIDR4, plan.ECHO_PORT, box)
    await client.send(b"x")
    async with asyncio.timeout(5):
        assert await client.reader.read(1) == b"x"
    return client


async def is_alive(client: Client) -> bool:
    try:
        await client.send(b"y")
        async with asyncio.timeout(5):
            return await client.reader.read(1) == b"y"
    except ConnectionResetError:
        return False


async def gate_has_read(gate: GateUnderTest) -> None:
    """What clients have sent is with the gate: the lane's poller has it at once, the HTTP side some turns
    of the loop later."""
    gate.embedded.gate.lane.run_ready()
    for _ in range(20):
        await asyncio.sleep(0)


class TestRelayed:
    @pytest.mark.parametrize(
        ("policy", "rule"),
        [
            ("deny-all", "mode: deny-all"),
            (NOTHING, "allowed_cidrs: no entry matches"),
            (ONLY_NAME, "allowed_cidrs: no entry matches"),
            (without(plan.CIDR4), f"denied_cidrs: {plan.CIDR4}/32"),
        ],
    )
    async def test_by_address(self, gate: GateUnderTest, lab: Lab, policy: object, rule: str) -> None:
        client = await relayed(gate)
        record = await cut(gate, client, policy, Event.END)
        assert (record.rule, record.allowed, record.bytes_up, record.bytes_down) == (rule, True, 1, 1)
        await lab.expect_async(lambda: lab.connections(plan.CIDR4)[0].closed == "reset")

    @pytest.mark.parametrize(
        ("policy", "rule"),
        [
            ("deny-all", "mode: deny-all"),
            (ONLY_WILD, "allowed_domains: no entry matches"),
            (ONLY_CIDR, "allowed_domains: no entry matches"),
            (without(plan.ALLOWED4), f"denied_cidrs: {plan.ALLOWED4}/32"),
        ],
    )
    async def test_by_name(self, gate: GateUnderTest, lab: Lab, policy: object, rule: str) -> None:
        client, _ = await gate.handshake(plan.ALLOWED4, 443, "allowed.test")
        record = await cut(gate, client, policy, Event.END)
        assert (record.rule, record.name) == (rule, "allowed.test")
        await lab.expect_async(lambda: lab.connections(plan.ALLOWED4)[0].closed == "reset")

    async def test_the_claimed_address_is_denied_now(self, gate: GateUnderTest) -> None:
        client, _ = await gate.handshake(plan.EVIL4, 443, "allowed.test")
        await cut(gate, client, without(plan.EVIL4), Event.END)

    async def test_a_thousand_at_once(self, gate: GateUnderTest, lab: Lab) -> None:
        clients = [await gate.claim(plan.CIDR4, plan.ECHO_PORT) for _ in range(500)]
        named = [await gate.claim(plan.ALLOWED4, 443) for _ in range(500)]
        await asyncio.gather(*(client.send(b"x") for client in clients))
        await asyncio.gather(*(client.send(client_hello()) for client in named))
        await asyncio.gather(*(client.reader.readexactly(1) for client in clients))
        await lab.expect_async(lambda: len(lab.connections(plan.ALLOWED4)) == 500)
        started = asyncio.get_running_loop().time()
        assert gate.put_policy("deny-all") == 1000
        taken = asyncio.get_running_loop().time() - started
        assert taken < 0.5, "ten times what it takes on an idle machine"
        assert all(await asyncio.gather(*(client.is_reset() for client in clients + named)))
        ends = [record for record in gate.records if record.reason is Reason.POLICY_CHANGED]
        assert len(ends) == 1000


class TestStillAllowed:
    async def test_loses_not_a_byte(self, gate: GateUnderTest) -> None:
        payload = bytes(range(256)) * (4096 * 16)
        client = await gate.claim(plan.CIDR4, plan.ECHO_PORT)

        async def send() -> None:
            await client.send(payload)
            client.end()

        async def change() -> None:
            while True:
                for policy in (ONLY_CIDR, "allow-all", POLICY, without(plan.EVIL4)):
                    assert gate.put_policy(policy) == 0
                    await asyncio.sleep(0)

        sending, changing = asyncio.create_task(send()), asyncio.create_task(change())
        digest = hashlib.sha256()
        async with asyncio.timeout(30):
            while data := await client.reader.read(1 << 20):
                digest.update(data)
        await sending
        changing.cancel()
        assert digest.digest() == hashlib.sha256(payload).digest()
        assert gate.embedded.gate.boxes[BOX].generation > 10

    @pytest.mark.parametrize("policy", ["allow-all", ONLY_NAME, without(plan.EVIL4)])
    async def test_by_name(self, gate: GateUnderTest, policy: object) -> None:
        client, _ = await gate.handshake(plan.ALLOWED4, 443, "allowed.test")
        assert gate.put_policy(policy) == 0
        await client.send(b"GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n")
        assert (await client.read()).startswith(b"HTTP/1.1 200")

    async def test_by_address_now_that_the_name_is_gone(self, gate: GateUnderTest) -> None:
        client, _ = await gate.handshake(plan.ALLOWED4, 443, "allowed.test")
        assert gate.put_policy({"mode": "custom", "allowed_cidrs": [f"{plan.ALLOWED4}/32"]}) == 0
        await client.send(b"GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n")
        assert (await client.read()).startswith(b"HTTP/1.1 200")

    async def test_another_box_is_not_touched(self, gate: GateUnderTest) -> None:
        gate.put_policy(POLICY, "other")
        mine, theirs = await relayed(gate), await relayed(gate, "other")
        assert gate.put_policy("deny-all") == 1
        assert await mine.is_reset()
        assert await is_alive(theirs)
        assert gate.embedded.gate.boxes["other"].generation == 1


class TestBeforeAVerdict:
    async def test_half_a_hello_is_judged_by_the_policy_that_it_ends_under(
        self, gate: GateUnderTest, lab: Lab
    ) -> None:
        clients = [await gate.claim(plan.ALLOWED4, 443) for _ in range(2)]
        hellos = (client_hello(), client_hello(b"a.wild.test"))
        for client, hello in zip(clients, hellos, strict=True):
            await client.send(hello[:30])
        await gate_has_read(gate)
        assert gate.put_policy(ONLY_WILD) == 0
        for client, hello in zip(clients, hellos, strict=True):
            await client.send(hello[30:])
        assert await clients[0].read() == ALERT_ACCESS_DENIED
        await lab.expect_async(lambda: lab.connections(plan.WILDCARD4))
        assert lab.packets(plan.ALLOWED4) == []

    @pytest.mark.parametrize("policy", ["deny-all", without(plan.ALLOWED4)])
    async def test_half_a_hello_that_no_name_can_save(
        self, gate: GateUnderTest, lab: Lab, policy: object
    ) -> None:
        client = await gate.claim(plan.ALLOWED4, 443)
        await client.send(client_hello()[:30])
        await gate_has_read(gate)
        record = await cut(gate, client, policy, Event.DECISION)
        assert not record.allowed
        assert lab.packets(plan.ALLOWED4) == []

    async def test_one_that_waits_goes_on_once_its_address_is_allowed(
        self, gate: GateUnderTest, lab: Lab
    ) -> None:
        silent = await gate.claim(plan.EVIL4, plan.BANNER_PORT)
        started = await gate.claim(plan.EVIL4, plan.ECHO_PORT)
        await started.send(b"\x16")
        await gate_has_read(gate)
        assert gate.put_policy("allow-all") == 0
        async with asyncio.timeout(5):
            assert await silent.reader.readline() == b"SSH-2.0-lab\r\n"
            assert await started.reader.read(1) == b"\x16"

    @pytest.mark.parametrize("policy", ["deny-all", ONLY_NAME, without("51.81.10.99")])
    async def test_a_resolution_under_way(self, gate: GateUnderTest, lab: Lab, policy: object) -> None:
        lab.dns.set("slow.wild.test", A=[plan.WILDCARD4], delay=1)
        client = await gate.claim("51.81.10.99", 443)
        await client.send(client_hello(b"slow.wild.test"))
        await lab.expect_async(lambda: lab.dns.questions)
        record = await cut(gate, client, policy, Event.DECISION)
        assert (record.allowed, record.name) == (False, "slow.wild.test")
        assert lab.packets(plan.WILDCARD4) == []

    async def test_a_resolution_that_comes_to_what_is_denied_now(self, gate: GateUnderTest, lab: Lab) -> None:
        lab.dns.set("slow.wild.test", A=[plan.WILDCARD4], delay=0.3)
        client = await gate.claim("51.81.10.99", 443)
        await client.send(client_hello(b"slow.wild.test"))
        await lab.expect_async(lambda: lab.dns.questions)
        assert gate.put_policy(without(plan.WILDCARD4)) == 0
        assert await client.read() == ALERT_ACCESS_DENIED
        assert lab.packets(plan.WILDCARD4) == []

    @pytest.mark.parametrize("policy", ["deny-all", ONLY_NAME, without(plan.SILENT4)])
    async def test_a_dial_under_way(self, gate: GateUnderTest, lab: Lab, policy: object) -> None:
        lab.dns.set("dead.wild.test", A=[plan.SILENT4])
        client = await gate.claim(plan.SILENT4, 443)
        await client.send(client_hello(b"dead.wild.test"))
        await lab.expect_async(lambda: lab.packets(plan.SILENT4, 443))
        await cut(gate, client, policy, Event.END)
        assert len(gate.embedded.gate.boxes[BOX].poller._targets) == 0

    async def test_a_dial_goes_on_to_what_is_still_allowed(self, gate: GateUnderTest, lab: Lab) -> None:
        gate.embedded.gate.lane.connecting._seconds = 0.3
        lab.dns.set("three.wild.test", A=[plan.SILENT4, plan.EVIL4, plan.WILDCARD4])
        client = await gate.claim(plan.SILENT4, 443)
        await client.send(client_hello(b"three.wild.test"))
        await lab.expect_async(lambda: lab.packets(plan.SILENT4, 443))
        assert gate.put_policy(without(plan.EVIL4)) == 0
        await lab.expect_async(lambda: lab.connections(plan.WILDCARD4))
        assert lab.packets(plan.EVIL4) == []


class TestHttp:
    async def test_keep_alive(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request("allowed.test"))
        assert (await client.read_response())[0] == 200
        record = await cut(gate, client, ONLY_WILD, Event.END)
        assert (record.name, record.rule) == ("allowed.test", "allowed_domains: no entry matches")
        await lab.expect_async(lambda: lab.connections(plan.ALLOWED4)[0].closed == "reset")

    @pytest.mark.parametrize("target", ["/", "/hold"])
    async def test_both_sides_are_reset_when_the_policy_is_in_force(
        self, gate: GateUnderTest, lab: Lab, target: str
    ) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request("allowed.test", line=f"GET {target} HTTP/1.1"))
        await lab.expect_async(lab.requests)
        if target == "/":
            await client.read_response()
        assert gate.put_policy("deny-all") == 1
        # Without another turn of the loop: what has been put is in force.
        sock = client.writer.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        resets = [packet for packet in lab.packets(plan.ALLOWED4) if "R" in packet.flags]
        assert len(resets) == 1

    @pytest.mark.parametrize("policy", [ONLY_NAME, "allow-all", without(plan.EVIL4)])
    async def test_keep_alive_that_is_still_allowed(
        self, gate: GateUnderTest, lab: Lab, policy: object
    ) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        for expected in (200, 200):
            await client.send(request("allowed.test"))
            assert (await client.read_response())[0] == expected
            assert gate.put_policy(policy) == 0
        assert len(lab.connections(plan.ALLOWED4)) == 1

    async def test_the_next_request_is_judged_by_the_new_policy(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request("allowed.test"))
        assert (await client.read_response())[0] == 200
        assert gate.put_policy(ONLY_NAME) == 0
        await client.send(request("a.wild.test"))
        assert (await client.read_response())[0] == 403
        assert lab.packets(plan.WILDCARD4) == []

    async def test_a_request_under_way(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request("allowed.test", line="GET /hold HTTP/1.1"))
        await lab.expect_async(lab.requests)
        await cut(gate, client, ONLY_WILD, Event.END)
        await lab.expect_async(lambda: lab.connections(plan.ALLOWED4)[0].closed == "reset")

    async def test_a_connection_of_an_earlier_request(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        for name in ("allowed.test", "a.wild.test"):
            await client.send(request(name))
            assert (await client.read_response())[0] == 200
        assert gate.put_policy(ONLY_WILD) == 0
        await lab.expect_async(lambda: lab.connections(plan.ALLOWED4)[0].closed == "reset")
        await client.send(request("a.wild.test"))
        assert (await client.read_response())[0] == 200
        assert lab.connections(plan.WILDCARD4)[0].closed is None

    async def test_a_name_that_is_being_resolved(self, gate: GateUnderTest, lab: Lab) -> None:
        lab.dns.set("slow.wild.test", A=[plan.WILDCARD4], delay=1)
        client = await gate.claim(plan.WILDCARD4, 80)
        await client.send(request("slow.wild.test"))
        await lab.expect_async(lambda: lab.dns.questions)
        record = await cut(gate, client, ONLY_NAME, Event.DECISION)
        assert record.name == "slow.wild.test"
        await gate.embedded.gate.resolver.addresses("slow.wild.test")
        assert [record.reason for record in gate.records] == [Reason.POLICY_CHANGED]
        assert lab.packets(plan.WILDCARD4) == []

    async def test_a_dial_under_way(self, gate: GateUnderTest, lab: Lab) -> None:
        lab.dns.set("dead.wild.test", A=[plan.SILENT4])
        client = await gate.claim(plan.SILENT4, 80)
        await client.send(request("dead.wild.test"))
        await lab.expect_async(lambda: lab.packets(plan.SILENT4, 80))
        await cut(gate, client, ONLY_NAME, Event.END)

    @pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\nHost:", request("allowed.test")[:-2]])
    async def test_half_a_head(self, gate: GateUnderTest, lab: Lab, head: bytes) -> None:
        clients = [await gate.claim(plan.ALLOWED4, 80) for _ in range(2)]
        for client in clients:
            await client.send(head)
        await gate_has_read(gate)
        assert gate.put_policy(ONLY_WILD) == 0
        await clients[0].send(request("allowed.test")[len(head) :])
        assert (await clients[0].read_response())[0] == 403
        assert gate.put_policy("deny-all") == 1
        assert await clients[1].is_reset()
        assert lab.packets(plan.ALLOWED4) == []

    async def test_a_websocket(self, gate: GateUnderTest, lab: Lab) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        extra = (
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        )
        await client.send(request("allowed.test", line="GET /ws HTTP/1.1", extra=extra))
        assert (await client.read_response())[0] == 101
        assert gate.put_policy(POLICY) == 0
        await client.send(b"\x81\x82\0\0\0\0hi")
        async with asyncio.timeout(5):
            assert await client.reader.readexactly(4) == b"\x81\x02hi"
        assert gate.put_policy(ONLY_WILD) == 1
        async with asyncio.timeout(PROMPTLY):
            assert await client.is_reset()
        await lab.expect_async(lambda: lab.connections(plan.ALLOWED4)[0].closed == "reset")

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
    async def test_a_connection_that_is_being_handed_over(
        self, gate: GateUnderTest, lab: Lab, turns: int
    ) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request("allowed.test"))
        gate.embedded.gate.lane.run_ready()
        for _ in range(turns):
            await asyncio.sleep(0)
        gate.put_policy("deny-all")
        await client.is_reset()
        assert lab.requests() == []
        assert lab.packets(plan.ALLOWED4) == []


class TestQuestions:
    async def test_one_that_upstream_has_been_asked(self, gate: GateUnderTest, lab: Lab) -> None:
        asker = Asker(gate)
        lab.dns.set("slow.wild.test", A=[plan.WILDCARD4], delay=1)
        asking = asyncio.create_task(asker.ask("slow.wild.test"))
        other = asyncio.create_task(asker.ask("slow.wild.test", "AAAA"))
        await lab.expect_async(lambda: len(lab.dns.questions) == 2)
        assert gate.put_policy(without(plan.EVIL4)) == 0
        assert gate.put_policy(ONLY_NAME) == 2
        async with asyncio.timeout(PROMPTLY):
            replies = [await asking, await other]
        assert [reply.header.rcode for reply in replies] == [dnslib.RCODE.REFUSED] * 2
        assert [record.reason for record in gate.records] == [Reason.POLICY_CHANGED] * 2

    async def test_a_connection_goes_on(self, gate: GateUnderTest) -> None:
        asker = Asker(gate)
        reader, writer = await asyncio.open_connection(*asker.tcp_address)
        for policy, code in ((POLICY, dnslib.RCODE.NOERROR), ("deny-all", dnslib.RCODE.REFUSED)):
            gate.put_policy(policy)
            question = dnslib.DNSRecord.question("allowed.test").pack()
            writer.write(len(question).to_bytes(2) + question)
            async with asyncio.timeout(5):
                answer = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            assert dnslib.DNSRecord.parse(answer).header.rcode == code
        writer.close()


class TestFailsClosed:
    async def test_what_can_not_be_judged_again_is_cut_and_the_others_are_judged(
        self, gate: GateUnderTest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate.may_fail = True
        clients = [await relayed(gate) for _ in range(3)]
        judge, calls = type(gate.embedded.gate.boxes[BOX].policy).judge_address, 0

        def broken(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise RuntimeError("a bug")
            return judge(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr("box_policy.policy.rules.CompiledPolicy.judge_address", broken)
        assert gate.put_policy(without(plan.EVIL4)) == 1
        monkeypatch.undo()
        assert (await gate.end()).reason is Reason.INTERNAL_ERROR
        assert sorted([await is_alive(client) for client in clients]) == [False, True, True]

    async def test_a_record_that_can_not_be_written_saves_no_connection(
        self, gate: GateUnderTest, lab: Lab
    ) -> None:
        def broken(_: object) -> None:
            raise RuntimeError("the disk is on fire")

        clients = [await relayed(gate) for _ in range(3)]
        gate.may_fail = True
        gate.embedded.gate.audit.add(broken)
        assert gate.put_policy("deny-all") == 3
        assert all([await client.is_reset() for client in clients])
