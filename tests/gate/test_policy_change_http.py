"""A new policy and plain HTTP: what an address had let through, what is recorded, what is used again."""

import asyncio

import pytest

from box_policy.audit.records import Event
from box_policy.gate.limits import Limits
from box_policy.policy.reasons import Reason
from tests.gate.conftest import BOX, POLICY, Client, GateUnderTest, MakeGate
from tests.gate.test_http import request
from tests.gate.test_policy_change import ONLY_NAME, ONLY_WILD, PROMPTLY, cut, gate_has_read, without
from tests.lab import Lab, plan

WEBSOCKET = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
MESSAGE = b"\x81\x82\0\0\0\0hi"
REPLY = b"\x81\x02hi"


async def served(gate: GateUnderTest) -> None:
    """Every HTTP connection has been served to its end."""
    async with asyncio.timeout(5):
        await asyncio.gather(*gate.embedded._door._tasks, return_exceptions=True)


class Slow:
    """An addon that keeps everybody waiting in one of its hooks."""

    def __init__(self, gate: GateUnderTest, hook: str) -> None:
        self.called = asyncio.Event()
        self.go = asyncio.Event()
        setattr(self, hook, self._wait)
        gate.embedded._master.addons.add(self)

    async def _wait(self, _: object) -> None:
        self.called.set()
        await self.go.wait()


class TestFalseHost:
    """The Host names what is allowed, and the connection goes elsewhere: its address had let it through."""

    @pytest.mark.parametrize("line", ["GET / HTTP/1.1", "GET /hold HTTP/1.1", "GET /ws HTTP/1.1"])
    @pytest.mark.parametrize("before", ["nothing", "a request", "half a head"])
    async def test_is_cut(self, make_gate: MakeGate, lab: Lab, before: str, line: str) -> None:
        gate = make_gate(ONLY_NAME)
        client = await gate.claim(plan.EVIL4, 80)
        asked = request("allowed.test", line=line, extra=WEBSOCKET if "/ws" in line else "")
        sent = len(line) + 2 if before == "half a head" else 0
        if before == "a request":
            await client.send(request("allowed.test"))
            assert (await client.read_response())[0] == 200
        await client.send(asked[:sent])
        await gate_has_read(gate)
        assert lab.packets(plan.EVIL4) == []
        gate.put_policy("allow-all")
        await client.send(asked[sent:])
        await lab.expect_async(lambda: lab.requests(plan.EVIL4))
        if "/hold" not in line:
            await client.read_response()
        assert gate.put_policy(ONLY_NAME) == 1
        async with asyncio.timeout(PROMPTLY):
            assert await client.is_reset()
        await lab.expect_async(lambda: lab.connections(plan.EVIL4)[0].closed == "reset")

    async def test_the_next_one_goes_to_the_true_host(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate("allow-all")
        for policy in ("allow-all", ONLY_NAME):
            gate.put_policy(policy)
            client = await gate.claim(plan.EVIL4, 80)
            await client.send(request("allowed.test"))
            assert (await client.read_response())[0] == 200
        assert len(lab.connections(plan.ALLOWED4)) == 1
        assert [packet.flags for packet in lab.packets(plan.EVIL4)].count("S") == 1

    async def test_a_dial_under_way(self, make_gate: MakeGate, lab: Lab) -> None:
        gate = make_gate("allow-all")
        client = await gate.claim(plan.SILENT4, 80)
        await client.send(request("allowed.test"))
        await lab.expect_async(lambda: lab.packets(plan.SILENT4, 80))
        await cut(gate, client, ONLY_NAME, Event.END)
        await served(gate)
        assert len(lab.packets(plan.SILENT4)) == 1
        assert lab.packets(plan.ALLOWED4) == []


class TestOneDenial:
    async def test_two_changes_before_it_is_looked_at(self, gate: GateUnderTest) -> None:
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(request("allowed.test"))
        gate.embedded.gate.lane.run_ready()
        assert [gate.put_policy(policy) for policy in ("deny-all", without(plan.ALLOWED4))] == [1, 0]
        assert await client.is_reset()
        await served(gate)
        assert [record.reason for record in gate.records] == [Reason.POLICY_CHANGED]

    async def test_a_head_that_was_refused(self, make_gate: MakeGate) -> None:
        gate = make_gate(limits=Limits(linger=0.1))
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n")
        assert (await client.read_response())[0] == 400
        assert gate.embedded.gate.boxes[BOX].live
        assert gate.put_policy("deny-all") == 0
        assert await client.read() == b""
        await served(gate)
        assert [record.reason for record in gate.records] == [Reason.HTTP_INVALID]

    async def test_a_request_that_an_addon_still_has(self, gate: GateUnderTest, lab: Lab) -> None:
        addon = Slow(gate, "requestheaders")
        client = await gate.claim(plan.WILDCARD4, 80)
        await client.send(request("new.wild.test"))
        await addon.called.wait()
        assert [gate.put_policy(policy) for policy in ("deny-all", POLICY)] == [1, 0]
        addon.go.set()
        assert await client.is_reset()
        await served(gate)
        await gate_has_read(gate)
        assert [record.reason for record in gate.records] == [Reason.POLICY_CHANGED]
        assert lab.packets() == []

    async def test_a_head_that_the_client_has_abandoned(self, gate: GateUnderTest) -> None:
        addon = Slow(gate, "client_disconnected")
        client = await gate.claim(plan.ALLOWED4, 80)
        await client.send(b"GET / HTTP/1.1\r\nHost:")
        client.end()
        await addon.called.wait()
        assert gate.embedded.gate.boxes[BOX].live
        assert gate.put_policy("deny-all") == 0
        addon.go.set()
        await served(gate)
        assert [record.reason for record in gate.records] == [Reason.CLIENT_GONE]


class TestEnd:
    async def test_is_recorded_at_once_whoever_is_slow(self, gate: GateUnderTest) -> None:
        addon = Slow(gate, "client_disconnected")
        client = await gate.claim(plan.ALLOWED4, 80)
        asked = request("allowed.test", line="GET /bytes/300000 HTTP/1.1")
        await client.send(asked)
        _, body = await client.read_response()
        assert gate.put_policy(ONLY_WILD) == 1
        end = gate.records[-1]  # without another turn of the loop
        gate.put_policy("allow-all")
        assert (end.event, end.reason, end.generation) == (Event.END, Reason.POLICY_CHANGED, 2)
        assert (end.rule, end.dialled) == ("allowed_domains: no entry matches", plan.ALLOWED4)
        assert end.bytes_up == len(asked)
        assert end.bytes_down is not None
        assert end.bytes_down > len(body) == 300000
        addon.go.set()
        await served(gate)
        assert gate.records[-1] is end

    async def test_a_request_whose_client_goes_before_its_verdict(
        self, gate: GateUnderTest, lab: Lab
    ) -> None:
        """Nothing is sent for it any more, so what is recorded is a denial."""
        lab.dns.set("slow.wild.test", A=[plan.WILDCARD4], delay=0.2)
        client = await gate.claim(plan.WILDCARD4, 80)
        await client.send(request("slow.wild.test"))
        await lab.expect_async(lambda: lab.dns.questions)
        client.writer.transport.abort()
        record = await gate.decision()
        assert (record.allowed, record.reason) == (False, Reason.CLIENT_GONE)
        assert lab.packets(plan.WILDCARD4) == []


class TestUpstream:
    BOTH = ("front.cdn.test", "hidden.othercdn.test")
    """Two names of one address."""

    async def _used(self, make_gate: MakeGate) -> tuple[GateUnderTest, Client]:
        """Connections to both origins, of which the first one's name is not the last request's."""
        gate = make_gate(self._policy(*self.BOTH))
        await gate.embedded.gate.resolver.addresses("hidden.othercdn.test")
        client = await gate.claim(plan.SHARED4, 80)
        for name in ("front.cdn.test", "a.wild.test"):
            await client.send(request(name))
            assert (await client.read_response())[0] == 200
        return gate, client

    def _policy(self, *names: str) -> object:
        return {"mode": "custom", "allowed_domains": [*names, "*.wild.test"]}

    async def test_that_a_change_has_reset_is_not_chosen_again(self, make_gate: MakeGate, lab: Lab) -> None:
        gate, client = await self._used(make_gate)
        assert gate.put_policy(self._policy("hidden.othercdn.test")) == 0
        await client.send(request("hidden.othercdn.test"))
        assert (await client.read_response())[0] == 200
        await lab.expect_async(lambda: lab.connections(plan.SHARED4)[0].closed == "reset")
        assert len(lab.connections(plan.SHARED4)) == 2

    @pytest.mark.parametrize("turns", range(12))
    async def test_that_a_change_resets_while_a_request_comes(self, make_gate: MakeGate, turns: int) -> None:
        gate, client = await self._used(make_gate)
        await client.send(request("hidden.othercdn.test"))
        for _ in range(turns):
            await asyncio.sleep(0)
        assert gate.put_policy(self._policy("hidden.othercdn.test")) == 0
        assert (await client.read_response())[0] == 200
