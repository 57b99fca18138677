"""What a box may cost: at its caps it is told no, once a second that is written down, and others go on."""

import asyncio
import base64
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from box_policy.audit.records import Event
from box_policy.gate.limits import Limits
from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, Inmate, ids
from tests.adversary.attack import Attack
from tests.adversary.attacker import PATIENCE, Attacker, Seen
from tests.adversary.conftest import OpenArena
from tests.adversary.wire import hello
from tests.lab import Lab, plan
from tests.lab.hellos import client_hello, handshake, records

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "Exhaustion"

HALF_HELLO: Final = client_hello(b"evil.test")[:40]
HALF_HEAD: Final = b"GET / HTTP/1.1\r\nHost: allowed.test\r\n"
SOON: Final = 2.0
"""Seconds in which a box has what it is allowed, whatever another does."""
MIB: Final = 1 << 20


async def holds(box: Attacker, data: bytes, count: int, address: str = plan.EVIL4, port: int = 443) -> Any:
    return await box.do("hold", address=address, port=port, data=base64.b64encode(data).decode(), count=count)


async def lets_through(box: Attacker) -> Seen:
    """A connection that is allowed, up to the first byte of the server's."""
    line = await box.connect(plan.ALLOWED4, 443, timeout=SOON)
    await line.send(hello(box, b"allowed.test"))
    seen = await line.read(size=1, timeout=SOON)
    await line.close()
    return seen


async def beside_half_hellos(box: Attacker) -> Seen:
    await holds(box, HALF_HELLO, 200)
    return await lets_through(box)


async def after_a_flood(box: Attacker) -> Seen:
    """Of connections that end before they have begun."""
    await box.python(
        "import socket\n"
        "for _ in range(1000):\n"
        f"    with socket.create_connection(({plan.EVIL4!r}, 443), 6): pass\n"
    )
    return await lets_through(box)


async def beside_silent_servers(box: Attacker) -> Seen:
    """An address inside an allowed network that drops every packet."""
    source = (
        "import socket\n"
        "for _ in range(100):\n"
        "    sock = socket.socket()\n"
        "    agent.held.append(sock)\n"
        f"    sock.connect(({plan.CIDR4!r}, {plan.SILENT_PORT}))\n"
    )
    await box.python(source)
    return await lets_through(box)


ATTACKS = [
    Attack(name="an allowed name beside 200 half hellos", act=beside_half_hellos, must_arrive=True),
    Attack(name="an allowed name after 1,000 silent connections", act=after_a_flood, must_arrive=True),
    Attack(name="an allowed name beside 100 silent servers", act=beside_silent_servers, must_arrive=True),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)


class Pair:
    """A box that takes all it can get, and another that only wants its due."""

    def __init__(self, arena: Arena, greedy: Inmate, other: Inmate) -> None:
        self.arena = arena
        self.greedy = greedy
        self.other = other
        self.gated = arena.gated(greedy)

    @classmethod
    async def open(cls, open_arena: OpenArena, **limits: Any) -> "Pair":
        arena = await open_arena(limits=Limits(**limits))
        return cls(arena, await arena.inmate(id="greedy"), await arena.inmate(id="other"))

    async def other_goes_on(self) -> None:
        started = time.monotonic()
        assert (await lets_through(self.other.attacker)).data == b"\x16"
        assert time.monotonic() - started < SOON

    def limits_told(self) -> list[str]:
        """What the records say of caps, of the greedy box."""
        told = [record for record in self.arena.records if record.reason is Reason.LIMIT]
        assert {record.box for record in told} <= {self.greedy.id}
        return [f"{record.protocol} {record.detail}".partition(";")[0] for record in told]

    async def recovers(self, data: bytes, address: str, port: int) -> None:
        """Once the greedy box has let go it may begin anew."""
        await self.greedy.attacker.do("release")
        await self.arena.rest(self.greedy)
        async with asyncio.timeout(PATIENCE):
            while True:
                await holds(self.greedy.attacker, data, 1, address, port)
                if (await self.greedy.attacker.do("held", timeout=0.1, ended=1))["open"] == 1:
                    break
                await self.greedy.attacker.do("release")
        await self.greedy.attacker.do("release")
        await self.arena.rest(self.greedy)


@dataclass(frozen=True)
class Cap:
    """A limit, what fills it up, and what is said of it."""

    limits: dict[str, float]
    told: str
    data: bytes = b""
    address: str = plan.EVIL4
    port: int = 443


ECHO: Final = (b"", plan.CIDR4, plan.ECHO_PORT)

CAPS: Final = {
    "connections": Cap({"connections": 20}, "tcp too many connections at once", *ECHO),
    "half hellos": Cap({"pending": 20}, "tcp too many connections without a verdict at once", HALF_HELLO),
    "half heads": Cap({"http_connections": 20}, "tcp too many HTTP connections at once", HALF_HEAD, port=80),
    "new connections": Cap(
        {"connection_rate": 2, "connection_burst": 20}, "tcp too many new connections at once", *ECHO
    ),
    "DNS connections": Cap(
        {"dns_connections": 20}, "dns too many connections at once", b"", plan.NAMESERVER4, plan.DNS_PORT
    ),
}


@pytest.mark.parametrize("cap", CAPS.values(), ids=CAPS.keys())
async def test_past_a_cap_connections_are_reset(open_arena: OpenArena, cap: Cap) -> None:
    pair = await Pair.open(open_arena, **cap.limits)
    greedy = pair.greedy.attacker
    started = time.monotonic()
    failed = (await holds(greedy, cap.data, 30, cap.address, cap.port))["failed"]
    held = await greedy.do("held", timeout=PATIENCE, ended=10)
    assert (held["open"], held["data"]) == (20, 0)
    # Who had the reset already as it sent sees no more than the end.
    assert (failed.keys() <= {"ECONNRESET", "EPIPE"}, held["eof"] <= sum(failed.values())) == (True, True)
    assert pair.limits_told() == [cap.told] * (1 if time.monotonic() - started < 1 else 2)
    await pair.other_goes_on()
    await pair.recovers(cap.data, cap.address, cap.port)


async def test_a_cap_is_told_of_every_second(open_arena: OpenArena) -> None:
    pair = await Pair.open(open_arena, pending=1)
    for count in (1, 2):
        await holds(pair.greedy.attacker, HALF_HELLO, 20)
        assert len(pair.limits_told()) == count
        await asyncio.sleep(1)


@pytest.mark.parametrize(
    ("limits", "told"),
    [({"dns_pending": 20}, "questions"), ({"question_burst": 20, "question_rate": 1}, "new questions")],
    ids=["at once", "in a second"],
)
async def test_past_a_cap_questions_are_refused(
    open_arena: OpenArena, lab: Lab, limits: dict[str, int], told: str
) -> None:
    pair = await Pair.open(open_arena, **limits)
    lab.dns.set("*.wild.test", silent=True)
    source = f"""
import socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(({plan.NAMESERVER4!r}, 53))
for number in range(50):
    sock.send(b"\\0%c\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\3a%02d\\4wild\\4test\\0\\0\\1\\0\\1" % (number, number))
sock.settimeout(5)
result = [sock.recv(512)[3] & 15 for _ in range(30)]
"""
    assert await pair.greedy.attacker.python(source) == [5] * 30
    assert pair.limits_told() == [f"dns too many {told} at once"]
    assert (pair.gated.questions, len(lab.dns.questions) <= 20) == (20, True)
    await pair.other_goes_on()


async def test_past_the_cap_requests_are_forbidden(open_arena: OpenArena, lab: Lab) -> None:
    pair = await Pair.open(open_arena, pending=5)
    lab.dns.set("*.wild.test", silent=True)
    request = b"GET / HTTP/1.1\r\nHost: slow.wild.test\r\n\r\n"
    for count in range(1, 6):
        await holds(pair.greedy.attacker, request, 1, plan.WILDCARD4, 80)
        while pair.gated.pending < count:
            await asyncio.sleep(0.001)
    pair.arena.gate.lane.limits = Limits()  # what has no verdict yet is a request, and not a connection
    for _ in range(3):
        seen = await pair.greedy.attacker.exchange(plan.WILDCARD4, 80, request)
        assert (str(seen), b'"reason":"limit"' in seen.data.replace(b" ", b"")) == ("http 403", True)
    assert len(pair.limits_told()) == 1
    await pair.other_goes_on()


LONG: Final[dict[str, tuple[bytes, int]]] = {
    "60,000 records of a byte": (records(handshake(bytes(60_000)), 1), 6),
    "16 MiB announced": (b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(400_000), 1000),
    "15,000 extensions": (
        client_hello(b"evil.test", extra_extensions=[(number, b"") for number in range(1000, 16_000)]), 0
    ),
    "2 MiB of headers": (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 350_000, 0),
}  # fmt: skip
"""And in segments of how many bytes each is sent."""


class TestHalfHellos:
    async def test_five_thousand(self, arena: Arena) -> None:
        greedy, other = await arena.inmate(id="hellos"), await arena.inmate(id="beside")
        arena.begin(greedy)
        pair = Pair(arena, greedy, other)
        before = memory()
        asking = asyncio.create_task(holds(greedy.attacker, HALF_HELLO, 5000))
        while not asking.done():
            await pair.other_goes_on()
            await asyncio.sleep(0.1)
        await asking
        assert pair.gated.pending == len(pair.gated.live) == Limits().pending
        assert memory() - before < 16 * MIB
        assert 0 < len(pair.limits_told()) < 20
        await pair.recovers(HALF_HELLO, plan.EVIL4, 443)

    async def test_end_in_time_whatever_trickles_in(self, open_arena: OpenArena) -> None:
        pair = await Pair.open(open_arena, verdict_timeout=0.5, linger=0.2, pending=100)
        greedy = pair.greedy.attacker
        started = time.monotonic()
        await holds(greedy, HALF_HELLO, 50)
        line = await greedy.connect(plan.EVIL4, 443)
        long = client_hello(b"evil.test", padding=2000)
        trickle = asyncio.create_task(line.send(long, segment=1, pause=0.01))
        held = await greedy.do("held", timeout=PATIENCE, ended=50)
        assert (held["eof"] + held["reset"], held["data"]) == (50, 50), "an alert, and the end"
        assert await trickle in ("ECONNRESET", "EPIPE")
        assert 0.4 < time.monotonic() - started < 3
        await line.close()
        await pair.arena.rest(pair.greedy)
        assert pair.arena.denials() == [Reason.TIMEOUT] * 51

    @pytest.mark.parametrize(("data", "segment"), LONG.values(), ids=LONG.keys())
    async def test_that_are_long_cost_little(self, arena: Arena, data: bytes, segment: int) -> None:
        greedy = await arena.inmate(id="long")
        arena.begin(greedy)
        port = 80 if data.startswith(b"GET") else 443
        memory_before, before = memory(), time.process_time()
        seen = await greedy.attacker.exchange(plan.EVIL4, port, data, segment=segment)
        assert str(seen) in ("alert 49", "http 431")
        assert time.process_time() - before < 3, "seconds of CPU"
        assert memory() - memory_before < 4 * MIB
        await arena.rest(greedy)
        assert len(arena.denials()) == 1

    async def test_may_be_no_longer_than_the_operator_says(self, open_arena: OpenArena) -> None:
        arena = await open_arena(limits=Limits(hello=1000, hello_extensions=12))
        box = await arena.inmate()
        more = [(number, b"") for number in range(99, 109)]
        for data in (
            hello(box.attacker, b"allowed.test", padding=1000),
            hello(box.attacker, b"allowed.test", extra_extensions=more),
        ):
            assert str(await box.attacker.exchange(plan.ALLOWED4, 443, data)) == "alert 49"
        assert arena.denials() == [Reason.HELLO_TOO_LARGE] * 2
        assert (await lets_through(box.attacker)).data == b"\x16"


async def test_who_dials_where_nobody_answers_gives_up_in_time(open_arena: OpenArena, lab: Lab) -> None:
    pair = await Pair.open(open_arena, pending=100, connect_timeout=0.2, dial_timeout=0.6, linger=0.2)
    addresses = [f"51.81.77.{number}" for number in range(1, 9)]
    lab.dns.set("dead.wild.test", A=addresses)
    data = hello(pair.greedy.attacker, b"dead.wild.test")
    started = time.monotonic()
    await holds(pair.greedy.attacker, data, 150, plan.WILDCARD4, plan.SILENT_PORT)
    await pair.other_goes_on()
    held = await pair.greedy.attacker.do("held", timeout=PATIENCE, ended=150)
    assert (held["data"], held["open"]) == (100, 0), "an alert each, and the end"
    assert time.monotonic() - started < 3
    await pair.arena.rest(pair.greedy)
    ends = [record for record in pair.arena.records if record.event is Event.END]
    failed = {(end.reason, end.detail.partition(": ")[2]) for end in ends if end.dialled in addresses}
    assert failed == {(Reason.UPSTREAM_FAILED, "Connection timed out")}
    assert 2 <= len({packet.address for packet in lab.packets(port=plan.SILENT_PORT)}) <= 3, "in that time"


def memory() -> int:
    """Bytes of this process, which is the gate's, that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
