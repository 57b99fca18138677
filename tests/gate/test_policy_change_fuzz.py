"""Random policies at random turns of the loop, against random clients: what must hold in any mix.

``BOX_POLICY_FUZZ_SECONDS`` and ``BOX_POLICY_FUZZ_SEEDS`` (a list, by commas) make it longer.
"""

import asyncio
import os
from collections import defaultdict
from ipaddress import ip_address
from random import Random

import dnslib
import pytest

from box_policy.audit.records import Event, Record
from box_policy.gate.limits import Limits
from box_policy.policy.rules import CompiledPolicy
from tests.gate.conftest import BOX, POLICY, Client, GateUnderTest, MakeGate
from tests.gate.test_dns import Asker
from tests.gate.test_http import request
from tests.gate.test_policy_change_http import MESSAGE, REPLY, WEBSOCKET
from tests.lab import Lab, Packet, plan
from tests.lab.hellos import client_hello

SECONDS = float(os.environ.get("BOX_POLICY_FUZZ_SECONDS", "4"))
SEEDS = [int(seed) for seed in os.environ.get("BOX_POLICY_FUZZ_SEEDS", "1,2").split(",")]
CLIENTS = 12
PATIENCE = 3.0
"""Seconds that a client gives one connection, and that the gate has to be rid of the last."""

NAMES = {
    "allowed.test": [plan.ALLOWED4, plan.ALLOWED6],
    "slow.wild.test": [plan.WILDCARD4],
    "dead.wild.test": [plan.SILENT4, plan.WILDCARD4],
    "multi.wild.test": [plan.EVIL4, plan.WILDCARD4],
    "front.cdn.test": [plan.SHARED4],
    "hidden.othercdn.test": [plan.SHARED4],
    "evil.test": [plan.EVIL4, plan.EVIL6],
}
PATTERNS = ["allowed.test", "*.wild.test", "slow.wild.test", "hidden.othercdn.test", "*.test"]
ADDRESSES = [plan.ALLOWED4, plan.WILDCARD4, plan.SHARED4, plan.EVIL4, plan.CIDR4]
NEIGHBOUR = "51.81.77.8"
NAME_SERVERS = (plan.NAMESERVER4, plan.NAMESERVER6)


class World:
    """The gate, and the chance that rules all that happens to it."""

    def __init__(self, gate: GateUnderTest, seed: int) -> None:
        self.gate = gate
        self.random = Random(seed)
        self.asker = Asker(gate)
        self.over = False

    @property
    def policy(self) -> CompiledPolicy:
        return self.gate.embedded.gate.boxes[BOX].policy

    def happens(self, probability: float) -> bool:
        return self.random.random() < probability

    def any_policy(self) -> object:
        some = [f"{address}/32" for address in self.random.sample(ADDRESSES, 2)]
        names = self.random.sample(PATTERNS, self.random.randint(0, 4))
        lists = {"allowed_domains": names, "allowed_cidrs": some, "denied_cidrs": some[1:]}
        chosen = self.random.sample([*lists], self.random.randint(1, 2))
        custom = {"mode": "custom"} | {key: lists[key] for key in chosen}
        return self.random.choice(["allow-all", "deny-all", custom, custom, custom])

    async def pause(self, seconds: float = 0.03) -> None:
        """Some time, or some turns of the loop."""
        if self.happens(0.5):
            await asyncio.sleep(self.random.random() * seconds)
        for _ in range(self.random.randint(0, 20)):
            await asyncio.sleep(0)


class Visitor:
    """One visit of a client, of whatever kind."""

    client: Client

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self.name = self.random.choice([*NAMES])

    async def visit(self) -> None:
        raise NotImplementedError

    async def connect(self, port: int) -> None:
        """Most often to where the name is."""
        known = NAMES[self.name] if self.world.happens(0.7) else [*ADDRESSES, plan.SILENT4]
        self.client = await self.world.gate.claim(self.random.choice(known), port)

    async def send(self, data: bytes) -> None:
        start = 0
        while start < len(data):
            end = start + self.random.choice([1, 5, 30, 100, len(data)])
            await self.client.send(data[start:end])
            start = end
            if self.world.happens(0.3):
                await self.world.pause()

    async def leave(self) -> None:
        if self.world.happens(0.3):
            self.client.end()
            await self.client.reader.read(10)
        if self.world.happens(0.5):
            self.client.writer.transport.abort()
        self.client.writer.close()


class Echo(Visitor):
    """What comes back is what was sent, whatever a hello at its start says."""

    async def visit(self) -> None:
        await self.connect(plan.ECHO_PORT)
        first = client_hello(self.name.encode(), ech=self.world.happens(0.1))
        if self.world.happens(0.3):
            first = self.random.choice([b"", b"\x16", client_hello()[:30], b"plain", bytes(70000)])
        await self.send(first)
        assert await self.client.reader.readexactly(len(first)) == first
        for _ in range(self.random.randint(0, 5)):
            await self.client.send(data := os.urandom(self.random.choice([1, 100, 3000, 30000])))
            assert await self.client.reader.readexactly(len(data)) == data
            await self.world.pause()
        await self.leave()


class Handshake(Visitor):
    async def visit(self) -> None:
        await self.connect(443)
        await self.send(client_hello(self.name.encode()))
        if self.world.happens(0.7):
            await self.client.reader.read(100)
        await self.leave()


class Question(Visitor):
    async def visit(self) -> None:
        name = self.random.choice([self.name, f"{self.random.random()}.{self.name}"])
        await self.world.asker.ask(name, self.random.choice(["A", "TXT"]), tcp=self.world.happens(0.4))


class Browser(Visitor):
    async def visit(self) -> None:
        await self.connect(80)
        for _ in range(self.random.randint(0, 4)):
            await self.random.choice([self.get, self.get, self.pipeline, self.upload, self.stream])()
            await self.world.pause()
        await self.random.choice([self.websocket, self.go_without_an_answer])()
        await self.leave()

    def request(self, line: str = "GET / HTTP/1.1", extra: str = "") -> bytes:
        return request(self.random.choice([*NAMES]), line=line, extra=extra)

    async def get(self) -> None:
        size = self.random.choice([0, 10, 200_000])
        await self.send(self.request(f"GET /bytes/{size} HTTP/1.1"))
        await self.world.pause()
        status, body = await self.client.read_response()
        assert status != 200 or len(body) == size

    async def pipeline(self) -> None:
        await self.send(self.request() + self.request())
        await self.client.read_response()
        await self.client.read_response()

    async def upload(self) -> None:
        extra = self.random.choice(["", "Expect: 100-continue\r\n"]) + "Content-Length: 20000\r\n"
        await self.client.send(self.request("POST / HTTP/1.1", extra))
        await self.send(bytes(20000))
        while (await self.client.read_response())[0] == 100:
            pass

    async def stream(self) -> None:
        await self.send(self.request("GET /slow?chunks=5&interval=0.01 HTTP/1.1"))
        await self.client.reader.readuntil(b"0\r\n\r\n")

    async def websocket(self) -> None:
        await self.client.send(self.request("GET /ws HTTP/1.1", WEBSOCKET))
        for _ in range(5 if (await self.client.read_response())[0] == 101 else 0):
            await self.client.send(MESSAGE)
            assert await self.client.reader.readexactly(len(REPLY)) == REPLY
            await self.world.pause()

    async def go_without_an_answer(self) -> None:
        head = self.random.choice([self.request(), b"GET / HTTP/1.1\r\n folded\r\n\r\n"])
        await self.send(head if self.world.happens(0.5) else head[: self.random.randrange(len(head))])


KINDS = [Echo, Echo, Handshake, Question, Browser, Browser, Browser]


async def keep_visiting(world: World) -> None:
    while True:
        try:
            async with asyncio.timeout(PATIENCE):
                await world.random.choice(KINDS)(world).visit()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # it was cut, or refused, or nobody answered


async def keep_echoing(world: World) -> None:
    """Another box, whose policy stays: it loses nothing."""
    client = await world.gate.claim(NEIGHBOUR, plan.ECHO_PORT, "other")
    while not world.over:
        await client.send(data := os.urandom(1000))
        assert await client.reader.readexactly(len(data)) == data
        await asyncio.sleep(0.005)
    client.end()
    assert await client.read() == b""


def may_be_asked(policy: CompiledPolicy, packet: Packet) -> bool:
    message = packet.payload if packet.protocol == "udp" else packet.payload[2:]
    question = dnslib.DNSRecord.parse(message).q
    return policy.judge_question(str(question.qname).lower().rstrip("."), question.qtype).allowed


def may_be_sent(policy: CompiledPolicy, packet: Packet) -> bool:
    """To an address that is allowed by itself, or as one of a name's; and then not with another Host."""
    address = ip_address(packet.address)
    if policy.judge_address(address).allowed:
        return True
    if packet.port == 80 and b"Host: " in packet.payload:
        host = packet.payload.partition(b"Host: ")[2].partition(b"\r\n")[0].decode()
        return policy.judge_resolution(host, (address,)).allowed
    names = (name for name, addresses in NAMES.items() if packet.address in addresses)
    return any(policy.judge_resolution(name, (address,)).allowed for name in names)


def may_leave(policy: CompiledPolicy, packet: Packet) -> bool:
    if packet.address == NEIGHBOUR or "R" in packet.flags:
        return True
    if packet.address in NAME_SERVERS:
        return packet.length == 0 or may_be_asked(policy, packet)
    return not (packet.flags == "S" or packet.length) or may_be_sent(policy, packet)


async def change_policies(world: World) -> None:
    """What leaves the gate's host after one and before the next is what that one allows."""
    loop, seen = asyncio.get_running_loop(), 0
    end = loop.time() + SECONDS
    while loop.time() < end:
        await world.pause(0.05)
        forbidden = [each for each in world.gate.lab.packets()[seen:] if not may_leave(world.policy, each)]
        assert forbidden == [], world.policy.policy
        world.gate.put_policy(world.any_policy())
        seen = len(world.gate.lab.packets())


def left_open(gate: GateUnderTest) -> list[object]:
    lane = gate.embedded.gate.lane
    found: list[object] = [*lane.relay.pairs, *gate.embedded._door._tasks]
    found += [*lane.arriving, *lane.connecting, *lane.leaving, *lane.overhearing]
    for box in gate.embedded.gate.boxes.values():
        counts = [box.pending, box.questions, box.overheard, box.roomy]
        counts += [box.dns_connections, box.http_connections]
        found += [*box.poller._targets.values(), *box.live, *box.asking, *filter(None, counts)]
    return found


def expect_one_verdict_each(records: list[Record]) -> None:
    connections = defaultdict(list)
    for record in records:
        connections[record.connection].append(record)
    for of_one in connections.values():
        decisions = [record.allowed for record in of_one if record.event is Event.DECISION]
        ends = len(of_one) - len(decisions)
        protocol = of_one[-1].protocol
        assert ends == (any(decisions) and protocol != "dns"), of_one
        # HTTP has several requests on one connection; but none comes after one that was denied.
        assert decisions.count(False) <= 1 if protocol == "http" else len(decisions) == 1, of_one


@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_forbidden_leaves(make_gate: MakeGate, lab: Lab, seed: int) -> None:
    gate = make_gate(limits=Limits(connect_timeout=0.3, linger=0.3, verdict_timeout=1, dns_idle_timeout=1))
    gate.put_policy(POLICY, "other")
    for name, addresses in NAMES.items():
        v4, v6 = ([each for each in addresses if (":" in each) is v6] for v6 in (False, True))
        lab.dns.set(name, A=v4, AAAA=v6, ttl=0, delay=0.1 if "slow" in name else 0)
    world = World(gate, seed)
    async with asyncio.TaskGroup() as group:
        busy = [group.create_task(keep_visiting(world)) for _ in range(CLIENTS)]
        group.create_task(keep_echoing(world))
        await change_policies(world)
        for task in busy:
            task.cancel()
        world.over = True
    for writer in gate.writers:
        writer.transport.abort()
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while left_open(gate) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
    assert left_open(gate) == []
    expect_one_verdict_each(gate.records)
