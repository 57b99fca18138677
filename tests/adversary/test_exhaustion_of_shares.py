"""What all boxes of a gate share: none takes another's part of it."""

import asyncio
import base64
import contextlib
import gc
import itertools
import os
import resource
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from box_policy.audit.records import Entry, Event, Record, SuppressedRecord
from box_policy.gate.limits import Limits
from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, Inmate
from tests.adversary.attacker import PATIENCE, Attacker, interpreter
from tests.adversary.conftest import OpenArena
from tests.adversary.test_exhaustion import HALF_HELLO, SOON, holds, lets_through
from tests.adversary.wire import hello, request
from tests.lab import Lab, plan
from tests.lab.hellos import client_hello

pytestmark = pytest.mark.asyncio(loop_scope="module")


DNS_QUESTION: Final = b"\0\1\1\0\0\1\0\0\0\0\0\0\4also\4wild\4test\0\0\1\0\1"
"""For the address of also.wild.test."""


async def two(open_arena: OpenArena, **limits: float) -> tuple[Arena, Inmate, Inmate]:
    """A gate, a box that takes all it can get, and another."""
    arena = await open_arena(limits=Limits(**limits))  # type: ignore[arg-type]
    return arena, await arena.inmate(id="greedy"), await arena.inmate(id="other")


async def goes_on(box: Inmate) -> float:
    """Seconds until something that is allowed has been let through."""
    started = time.monotonic()
    assert (await lets_through(box.attacker)).data == b"\x16"
    return time.monotonic() - started


def told(arena: Arena, box: Inmate) -> set[str]:
    """What the records say of a box's caps."""
    found = [record for record in arena.records if record.reason is Reason.LIMIT]
    return {record.detail.partition(";")[0] for record in found if record.box == box.id}


class TestNameServers:
    """Each box has so many questions under way, and its others wait for these alone."""

    async def greedy_waits(self, arena: Arena, greedy: Inmate, lab: Lab) -> None:
        lab.dns.set("*.wild.test", silent=True)
        for name in ("late", "also", "later"):
            lab.dns.set(f"{name}.wild.test", A=[plan.WILDCARD4])
        for number in range(8):
            silent = hello(greedy.attacker, f"{number}.wild.test".encode())
            await holds(greedy.attacker, silent, 1, plan.WILDCARD4)
            web = request(greedy.attacker, f"web{number}.wild.test".encode())
            await holds(greedy.attacker, web, 1, plan.WILDCARD4, 80)
        for name in ("late", "also"):
            queued = hello(greedy.attacker, f"{name}.wild.test".encode())
            await holds(greedy.attacker, queued, 1, plan.WILDCARD4)
        await greedy.attacker.python(
            "import socket\n"
            "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            f"sock.connect(({plan.NAMESERVER4!r}, 53))\n"
            "for number in range(8):\n"
            f"    sock.send({DNS_QUESTION!r}.replace(b'also', b'slo%d' % number))\n"
        )
        while arena.gated(greedy).pending < 18 or arena.gated(greedy).questions < 8:
            await asyncio.sleep(0.001)
        await lab.expect_async(lambda: len(lab.dns.questions) == 4)

    async def test_of_another_box_are_asked_meanwhile(self, open_arena: OpenArena, lab: Lab) -> None:
        arena, greedy, other = await two(open_arena, resolving=4)
        await self.greedy_waits(arena, greedy, lab)
        assert await goes_on(other) < SOON
        # For these names the greedy box waits as well.
        line = await other.attacker.connect(plan.WILDCARD4, 443)
        await line.send(hello(other.attacker, b"late.wild.test"))
        assert (await line.read(size=1, timeout=SOON)).data == b"\x16"
        await line.close()
        answer = await other.attacker.datagram(plan.NAMESERVER4, 53, DNS_QUESTION, timeout=SOON)
        assert answer.data.endswith(bytes([51, 81, 10, 11]))
        web = request(other.attacker, b"later.wild.test", more=b"Connection: close\r\n")
        assert str(await other.attacker.exchange(plan.WILDCARD4, 80, web)) == "http 200"
        theirs = {"allowed.test", "late.wild.test", "also.wild.test", "later.wild.test"}
        assert len([asked for asked in lab.dns.questions if asked.name not in theirs]) == 4

    async def test_fail_in_time(
        self, open_arena: OpenArena, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("box_policy.gate.resolver._TOTAL_TIMEOUT", 0.5)
        arena, greedy, other = await two(open_arena, resolving=4, linger=0.1)
        await self.greedy_waits(arena, greedy, lab)
        held = await greedy.attacker.do("held", timeout=PATIENCE, ended=18)
        assert held["eof"] == 18
        await arena.rest(greedy)
        assert arena.denials() == [Reason.RESOLUTION_FAILED] * 26
        resolver = arena.gate.resolver
        async with asyncio.timeout(PATIENCE):
            while resolver._asking or resolver._turns._taken or resolver._turns._queues:
                await asyncio.sleep(0.001)
        for inmate in (greedy, other):
            assert await goes_on(inmate) < SOON


class TestDescriptors:
    async def test_the_last_quarter_is_shared_out(self, open_arena: OpenArena) -> None:
        arena, greedy, other = await two(open_arena)
        arena.gate.descriptors.limit = free_descriptor(20) * 4 // 3
        await holds(greedy.attacker, HALF_HELLO, 100)
        held = await greedy.attacker.do("held", timeout=0.5, ended=50)
        assert 10 < held["open"] < 30
        assert told(arena, greedy) == {"too many descriptors at once"}
        await goes_on(other)
        await holds(other.attacker, HALF_HELLO, 2)
        assert (await other.attacker.do("held", timeout=0.1, ended=1))["open"] == 2
        assert told(arena, other) == set()
        await greedy.attacker.do("release")
        await arena.rest(greedy)
        await goes_on(greedy)

    async def test_http_has_one_upstream_each_when_they_are_few(
        self, open_arena: OpenArena, lab: Lab
    ) -> None:
        arena, greedy, _ = await two(open_arena)
        lab.dns.set("second.wild.test", A=[plan.SHARED4])
        line = await greedy.attacker.connect(plan.ALLOWED4, 80)
        for name, few, answer in (
            (b"allowed.test", False, b"HTTP/1.1 200"),
            (b"second.wild.test", True, b"HTTP/1.1 502"),
        ):
            arena.gate.descriptors.limit = free_descriptor(0) * 5 // 4 if few else 100_000
            await line.send(request(greedy.attacker, name))
            assert (await line.read(size=12)).data == answer
            await line.read(until=b"\r\n\r\n", timeout=0.2)
        await line.close()
        assert lab.connections(plan.SHARED4) == []

    async def test_without_any_all_is_denied_and_then_goes_on(self, open_arena: OpenArena, lab: Lab) -> None:
        arena, greedy, other = await two(open_arena, linger=0.1)
        await goes_on(other)
        arena.begin(other)
        with exhausted() as taken:
            held = await holds(greedy.attacker, HALF_HELLO, 20)
            assert arena.gated(greedy).live == set(), held
            assert told(arena, greedy) == {"too many descriptors at once"}
            allowed = hello(other.attacker, b"front.cdn.test")
            assert str(await other.attacker.exchange(plan.SHARED4, 443, allowed)) in ("reset", "EPIPE")
            # With one it can be accepted, but nothing can be asked, and nothing dialled.
            os.close(taken.pop())
            assert str(await other.attacker.exchange(plan.SHARED4, 443, allowed)) == "alert 80"
            await arena.rest(other)
            assert str(await other.attacker.exchange(plan.CIDR4, plan.ECHO_PORT, b"x")) == "reset"
            assert lab.packets() == []
        await goes_on(other)
        await greedy.attacker.do("release")
        await goes_on(greedy)
        denied = [record.reason for record in arena.records if record.box == other.id and not record.allowed]
        assert denied == [Reason.LIMIT, Reason.RESOLUTION_FAILED]
        failed = next(record for record in arena.records if record.reason is Reason.UPSTREAM_FAILED)
        assert (failed.box, failed.detail) == (other.id, f"{plan.CIDR4}: Too many open files")


async def test_source_ports_are_left_for_others(open_arena: OpenArena) -> None:
    """Each connection to an address takes one up for a minute after its end."""
    arena, greedy, other = await two(open_arena, connection_rate=1, connection_burst=40)
    source = f"""
import base64, socket
hello, open_ones = base64.b64decode({base64.b64encode(client_hello()).decode()!r}), 0
for _ in range(300):
    with socket.socket() as sock:
        try:
            sock.connect(({plan.ALLOWED4!r}, 443))
            sock.sendall(hello)
            open_ones += sock.recv(1) == b"\\x16"
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536): pass
        except OSError:
            pass
result = open_ones
"""
    with source_ports(100):
        assert 40 <= await greedy.attacker.python(source) < 80
        assert told(arena, greedy) == {"too many new connections at once"}
        await goes_on(other)


async def test_records_of_one_leave_room_for_others(open_arena: OpenArena) -> None:
    arena, greedy, other = await two(open_arena, records=5, records_burst=20)
    written: list[Entry] = []
    arena.audit.add_paced(written.append)
    started = time.monotonic()
    source = f"""
import socket
for _ in range(500):
    with socket.socket() as sock:
        try:
            sock.connect(({plan.PRIVATE4!r}, 443))
        except OSError:
            pass
"""
    denied = asyncio.create_task(greedy.attacker.python(source))
    for _ in range(5):
        await goes_on(other)
    await denied
    while not any(isinstance(entry, SuppressedRecord) for entry in written):
        await asyncio.sleep(0.05)
    arena.audit.forget(greedy.id)
    most = 20 + 5 * (time.monotonic() - started) + 1
    theirs = [entry for entry in written if isinstance(entry, Record) and entry.box == other.id]
    assert [entry.event for entry in theirs if entry.event is Event.DECISION] == [Event.DECISION] * 5
    mine = [entry for entry in written if entry.box == greedy.id]
    suppressed = [entry.records for entry in mine if isinstance(entry, SuppressedRecord)]
    assert 20 <= len(mine) - len(suppressed) <= most
    assert len(mine) - len(suppressed) + sum(suppressed) == 500
    assert len([record for record in arena.records if record.box == greedy.id]) == 500, "counted all the same"


FLOODS: Final = {
    "connections without a word": f"""
with socket.socket() as sock:
    sock.connect(({plan.EVIL4!r}, 443))
""",
    "denied hellos": f"""
with socket.socket() as sock:
    sock.connect(({plan.EVIL4!r}, 443))
    sock.send({client_hello(b"evil.test")!r})
""",
    "bytes that trickle in": f"""
if not held:
    for _ in range(400):
        held.append(socket.create_connection(({plan.EVIL4!r}, 443), 6))
        held[-1].send({HALF_HELLO!r})
for sock in held:
    try:
        sock.send(b"x")
    except OSError:
        pass
""",
    "HTTP requests": f"""
if not held:
    for _ in range(64):
        held.append(socket.create_connection(({plan.ALLOWED4!r}, 80), 6))
        held[-1].setblocking(False)
for sock in held:
    try:
        sock.send(b"GET / HTTP/1.1\\r\\nHost: allowed.test\\r\\n\\r\\n")
        sock.recv(65536)
    except OSError:
        pass
""",
    "questions": f"""
if not held:
    held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    held[0].connect(({plan.NAMESERVER4!r}, 53))
    held[0].setblocking(False)
try:
    name = os.urandom(8).hex().encode()
    held[0].send(b"\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\x10" + name + b"\\4wild\\4test\\0\\0\\1\\0\\1")
    held[0].recv(4096)
except OSError:
    pass
""",
}


async def test_all_floods_at_once(open_arena: OpenArena) -> None:
    """As fast as the box can, for which it has as many processes as the machine has CPUs, and more."""
    arena, greedy, other = await two(open_arena)
    await goes_on(other)
    floods = [asyncio.create_task(flood(greedy.attacker, source, 2.5)) for source in FLOODS.values()]
    async with asyncio.timeout(PATIENCE):
        while len(arena.records) < 500:
            await asyncio.sleep(0.01)
    times = []
    while not any(task.done() for task in floods):
        times.append(await goes_on(other))
    await asyncio.gather(*floods)
    assert len(times) > 5
    assert max(times) < SOON
    assert told(arena, other) == set()


async def flood(box: Attacker, source: str, seconds: float) -> None:
    program = f"import os, socket, time\nheld, end = [], time.monotonic() + {seconds}\n"
    program += "while time.monotonic() < end:\n" + textwrap.indent(source.strip(), "    ")
    status, output = await box.program(interpreter() or "", "-c", program)
    assert status == 0, output


def free_descriptor(place: int) -> int:
    """The number of a descriptor that this process has free, with so many free ones below it."""
    taken = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    return next(itertools.islice((fd for fd in itertools.count() if fd not in taken), place, None))


@contextlib.contextmanager
def exhausted() -> Iterator[list[int]]:
    """This process has no descriptor left, but for those that are in the list, to be closed."""
    gc.collect()  # or what it closes would be free again
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(file.name) for file in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield taken
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


@contextlib.contextmanager
def source_ports(count: int) -> Iterator[None]:
    """The gate's host, a namespace of this test's, has no more ports to connect from."""
    file = Path("/proc/sys/net/ipv4/ip_local_port_range")
    before = file.read_text()
    try:
        file.write_text(f"50000 {50000 + count - 1}")
    except OSError as error:
        pytest.skip(f"the range of ports can't be changed here: {error}")
    try:
        yield
    finally:
        file.write_text(before)
