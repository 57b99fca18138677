"""A policy that changes while a box fights it: nothing outlives a tightening, nothing is lost to a loosening.

The changes of one connection at a time, at every turn of it, are in ``tests/gate/test_policy_change*.py``.
Here a real box has it all open at once, hammers through hundreds of changes, and is faster than its policy.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import dns.message
import dns.rcode
import pytest

from benchmarks.rig.live.tap import Tap
from benchmarks.rig.live.windows import Window, violations
from box_policy.control.store import PolicyStore
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.reasons import Reason
from box_policy.sandbox.launcher import Box, BoxSpec
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.service.boxes import Boxes
from box_policy.service.requests import CreateBox
from box_policy.service.snapshots import Snapshots
from tests.adversary.arena import Arena, start_agent
from tests.adversary.attack import CUSTOM
from tests.adversary.attacker import Attacker, Line
from tests.adversary.wire import hello, request, tls
from tests.lab import Lab, Packet, plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPTLY: Final = 1.0
"""Seconds within which a program in the box sees what has been done to its connection."""
WIDE: Final = {
    "mode": "custom",
    "allowed_domains": ["allowed.test", "*.wild.test"],
    "allowed_cidrs": [plan.CIDR, f"{plan.SILENT4}/32"],
}
ELSEWHERE: Final = {"mode": "custom", "allowed_domains": ["elsewhere.test"]}
NOT_THESE: Final = {"mode": "custom", "denied_cidrs": ["51.81.0.0/16", "2a0f:5100::/32"]}
_WEBSOCKET: Final = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)

type Open = Callable[[Attacker, Line], Awaitable[object]]


async def _tunnel(box: Attacker, line: Line) -> None:
    # Not a whole handshake: Python's TLS takes a reset for an end without a word.
    await line.send(hello(box, b"allowed.test"))
    assert str(await line.read(size=100)) == "data"


async def _by_address(box: Attacker, line: Line) -> None:
    await line.send(b"ping")
    assert (await line.read(size=4)).data == b"ping"


async def _kept_alive(box: Attacker, line: Line) -> None:
    await line.send(request(box, b"allowed.test"))
    assert (await line.read(until=b"}")).code == 200  # the end of the body


async def _websocket(box: Attacker, line: Line) -> None:
    await line.send(request(box, b"allowed.test", target=b"/ws", more=_WEBSOCKET))
    assert (await line.read(until=b"\r\n\r\n")).code == 101
    await line.send(b"\x81\x82\0\0\0\0hi")
    assert (await line.read(size=4)).data == b"\x81\x02hi"


async def _upload(box: Attacker, line: Line) -> None:
    more = b"Content-Length: 1000000\r\n"
    await line.send(request(box, b"allowed.test", method=b"POST", target=b"/echo", more=more) + b"x" * 5000)


async def _download(box: Attacker, line: Line) -> None:
    await line.send(request(box, b"allowed.test", target=b"/slow?chunks=0&interval=0.01&size=100"))
    assert (await line.read(until=b"\r\n\r\n")).code == 200


ESTABLISHED: Final[dict[str, tuple[str, int, Open]]] = {
    "a TLS tunnel": (plan.ALLOWED4, 443, _tunnel),
    "the same over IPv6": (plan.ALLOWED6, 443, _tunnel),
    "a connection by address": (plan.CIDR4, plan.ECHO_PORT, _by_address),
    "HTTP kept alive": (plan.ALLOWED4, 80, _kept_alive),
    "a WebSocket": (plan.ALLOWED4, 80, _websocket),
    "an upload": (plan.ALLOWED4, 80, _upload),
    "a download": (plan.ALLOWED4, 80, _download),
}


def slow(box: Attacker) -> bytes:
    """A name whose server takes its time, asked for by nobody before."""
    return box.nonce.encode() + b".slow.wild.test"


UNDER_WAY: Final[dict[str, tuple[str, int, Open]]] = {
    "a name that is being resolved": (
        plan.WILDCARD4,
        443,
        lambda box, line: line.send(hello(box, slow(box))),
    ),
    "a dial": (plan.SILENT4, 443, lambda box, line: line.send(b"early")),
    "half a hello": (plan.ALLOWED4, 443, lambda box, line: line.send(hello(box, b"allowed.test")[:30])),
    "half a head": (plan.ALLOWED4, 80, lambda box, line: line.send(b"GET / HTTP/1.1\r\nHost: allo")),
}


async def opened(box: Attacker, kinds: dict[str, tuple[str, int, Open]]) -> dict[str, Line]:
    """A connection of each kind."""
    lines = {}
    for name, (address, port, begin) in kinds.items():
        lines[name] = line = await box.connect(address, port)
        assert line.error is None, name
        await begin(box, line)
    return lines


async def under_way(arena: Arena) -> None:
    """All that is not decided yet has come as far as it can."""
    await arena.lab.expect_async(lambda: any(".slow." in q.name for q in arena.lab.dns.questions))
    await arena.lab.expect_async(lambda: arena.lab.packets(plan.SILENT4))


async def ends_of(lines: dict[str, Line]) -> dict[str, str]:
    """How each has ended, in its own words; what came before that is left out."""
    seen = await asyncio.gather(*(line.read(timeout=PROMPTLY) for line in lines.values()))
    return {name: one.ended or "open" for name, one in zip(lines, seen, strict=True)}


def _ends_alone(packets: list[Packet]) -> None:
    """These end connections, or acknowledge; none opens one, and none carries a byte."""
    assert [packet for packet in packets if packet.length or packet.flags not in {"AR", "R", "A"}] == []
    assert any("R" in packet.flags for packet in packets)


class TestTightening:
    @pytest.mark.parametrize("policy", ["deny-all", ELSEWHERE, NOT_THESE], ids=["all", "names", "addresses"])
    async def test_cuts_what_is_open(self, arena: Arena, policy: object) -> None:
        inmate = await arena.inmate(WIDE, id="tight")
        arena.put_policy(inmate, WIDE)
        arena.begin(inmate)
        box, lab = inmate.attacker, arena.lab
        lab.dns.set("*.slow.wild.test", A=[plan.WILDCARD4], delay=30)
        lines = await opened(box, ESTABLISHED | UNDER_WAY)
        await under_way(arena)
        before = len(lab.packets())
        late = {name: line for name, line in lines.items() if policy == ELSEWHERE and "half" in name}
        assert arena.put_policy(inmate, policy) == len(lines) - len(late)

        # From here on not a byte leaves, whatever the box says.
        ended = {name: line for name, line in lines.items() if name not in late}
        assert await ends_of(ended) == dict.fromkeys(ended, "reset")
        await asyncio.gather(*(line.send(box.nonce.encode() * 100) for line in ended.values()))
        _ends_alone(lab.packets()[before:])
        await lab.expect_async(lambda: {c.closed for c in lab.connections()} == {"reset"})
        if late:  # a name may still come that is allowed; it does not
            await late["half a hello"].send(hello(box, b"allowed.test")[30:])
            assert str(await late["half a hello"].see()) == "alert 49"
            await late["half a head"].send(b"wed.test\r\n\r\n")
            assert str(await late["half a head"].see()) == "http 403"
        await box.do("release")
        await arena.rest(inmate)
        changed = [r for r in arena.records if r.reason is Reason.POLICY_CHANGED]
        assert len(changed) == len(ended)

    async def test_ends_questions_under_way(self, arena: Arena) -> None:
        inmate = await arena.inmate(WIDE, id="asking")
        arena.begin(inmate)
        name = slow(inmate.attacker).decode()
        arena.lab.dns.set(name, A=[plan.WILDCARD4], delay=0.5)
        query = dns.message.make_query(name, "A")
        asking = asyncio.create_task(inmate.attacker.datagram("9.9.9.9", 53, query.to_wire()))
        await arena.lab.expect_async(lambda: arena.lab.dns.questions)
        arena.put_policy(inmate, "deny-all")
        answer = dns.message.from_wire((await asking).data)
        assert (answer.rcode(), answer.answer) == (dns.rcode.REFUSED, [])
        later = await inmate.attacker.datagram(
            "9.9.9.9", 53, dns.message.make_query("allowed.test", "A").to_wire()
        )
        assert dns.message.from_wire(later.data).rcode() == dns.rcode.REFUSED
        assert {question.name for question in arena.lab.dns.questions} == {name}

    async def test_cuts_what_only_the_open_mode_had_let_through(self, arena: Arena) -> None:
        # No rule in the box is older than its connections, so none of them is exempt from one that comes.
        inmate = await arena.inmate("allow-all", id="early")
        arena.begin(inmate)
        line = await inmate.attacker.connect(plan.EVIL4, plan.ECHO_PORT)
        await _by_address(inmate.attacker, line)
        before = len(arena.lab.packets())
        assert arena.put_policy(inmate, CUSTOM) == 1
        await line.send(inmate.attacker.nonce.encode())
        assert (await line.read()).ended == "reset"
        _ends_alone(arena.lab.packets()[before:])

    async def test_of_a_paused_box(self, arena: Arena) -> None:
        # What is open is cut while nothing in the box runs; what waits in the kernel is judged when taken.
        inmate = await arena.inmate(WIDE, id="paused")
        arena.begin(inmate)
        box, lab = inmate.attacker, arena.lab
        line = await box.connect(plan.CIDR4, plan.ECHO_PORT)
        await _by_address(box, line)
        arena.gate.pause(inmate.id)
        waiting = await box.connect(plan.CIDR4, plan.ECHO_PORT)
        await waiting.send(box.nonce.encode())
        await inmate.box.pause()
        assert arena.put_policy(inmate, ELSEWHERE) == 1
        await lab.expect_async(lambda: lab.connections(plan.CIDR4)[0].closed == "reset")
        arena.gate.resume(inmate.id)
        await inmate.box.resume()
        assert (await line.read()).ended == "reset"
        assert str(await waiting.see()) == "reset"
        assert not any(box.nonce.encode() in c.received for c in lab.connections())
        await box.do("release")


_STREAM: Final = f"""
import hashlib, os, socket, threading
sock = socket.create_connection(({plan.CIDR4!r}, {plan.ECHO_PORT}), 10)
data = os.urandom(1 << 16) * 192
def send():
    for start in range(0, len(data), 1 << 14):
        sock.sendall(data[start : start + (1 << 14)])
    sock.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
came, size = hashlib.sha256(), 0
while True:
    piece = sock.recv(1 << 16)
    if not piece:
        break
    came.update(piece)
    size += len(piece)
result = [size == len(data), came.hexdigest() == hashlib.sha256(data).hexdigest()]
"""


async def test_what_stays_allowed_loses_not_a_byte(arena: Arena) -> None:
    inmate = await arena.inmate(WIDE, id="stream")
    arena.begin(inmate)
    lines = await opened(inmate.attacker, ESTABLISHED)
    stream = asyncio.create_task(inmate.attacker.python(_STREAM))
    cut = changes = 0
    narrower = {"mode": "custom", "allowed_domains": ["allowed.test"], "allowed_cidrs": [plan.CIDR]}
    for policy in itertools.cycle(
        ["allow-all", CUSTOM, WIDE, narrower, {"mode": "custom", "denied_cidrs": ["9.9.9.9"]}]
    ):
        cut += arena.put_policy(inmate, policy)
        changes += 1
        await asyncio.sleep(0.001)
        if stream.done():
            break
    assert await stream == [True, True]
    assert (cut, changes > 5) == (0, True)
    for name in ("HTTP kept alive", "a connection by address"):
        _, _, again = ESTABLISHED[name]
        await again(inmate.attacker, lines[name])
    await lines["a WebSocket"].send(b"\x81\x82\0\0\0\0hi")
    assert (await lines["a WebSocket"].read(size=4)).data == b"\x81\x02hi"
    await inmate.attacker.do("release")


def hammering(box: Attacker) -> str:
    """Code that begins to try, without a pause, what is allowed and what isn't, until it is told to stop."""
    question = dns.message.make_query("evil.test", "A").to_wire()
    return f"""
import socket, threading
EVIL, ALLOWED, QUESTION = {hello(box, b"evil.test")!r}, {hello(box, b"allowed.test")!r}, {question!r}
agent.stop = threading.Event()
agent.counts = {{}}
def hammer(name, family, address, port, data):
    kind = socket.SOCK_DGRAM if port == 53 else socket.SOCK_STREAM
    while not agent.stop.is_set():
        end = "failed"
        try:
            with socket.socket(family, kind) as sock:
                sock.settimeout(5)
                sock.connect((address, port))
                sock.sendall(data)
                answer = sock.recv(100)
                end = "alert" if answer[:1] == b"\\x15" else "answered" if answer else "ended"
        except OSError:
            pass
        agent.counts[name, end] = agent.counts.get((name, end), 0) + 1
agent.hammers = [threading.Thread(target=hammer, args=of, daemon=True) for of in (
    ("evil", socket.AF_INET, {plan.EVIL4!r}, 443, EVIL),
    ("raw", socket.AF_INET, {plan.EVIL4!r}, 443, b"RAW {box.nonce}\\n"),
    ("http", socket.AF_INET, {plan.EVIL4!r}, 80, b"GET / HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n"),
    ("false", socket.AF_INET, {plan.EVIL4!r}, 443, ALLOWED),
    ("question", socket.AF_INET, "9.9.9.9", 53, QUESTION),
    ("allowed", socket.AF_INET, {plan.ALLOWED4!r}, 443, ALLOWED),
)]
for thread in agent.hammers:
    thread.start()
result = "begun"
"""


_STOP: Final = """
agent.stop.set()
for thread in agent.hammers:
    thread.join()
result = {" ".join(key): count for key, count in agent.counts.items()}
"""


async def test_five_hundred_switches_under_fire(arena: Arena) -> None:
    # The foreign address is reached in the windows in which everything is allowed, and never between them.
    inmate = await arena.inmate(CUSTOM, id="windows")
    arena.put_policy(inmate, CUSTOM)
    arena.begin(inmate)
    tap, choose, opened_windows = Tap(plan.GATE_INTERFACE, plan.EVIL4), random.Random(1), []
    assert await inmate.attacker.python(hammering(inmate.attacker)) == "begun"
    for _ in range(250):
        await asyncio.sleep(choose.uniform(0, 0.002))
        begins = time.time_ns()
        arena.put_policy(inmate, "allow-all")
        await asyncio.sleep(choose.uniform(0, 0.002))
        arena.put_policy(inmate, CUSTOM)
        opened_windows.append(Window(begins, time.time_ns()))
        tap.drain()
    counts: Any = await inmate.attacker.python(_STOP)
    tap.drain()
    tap.close()
    outside, late = violations(opened_windows, tap.segments)
    assert outside == []
    assert late == []
    assert len([segment for segment in tap.segments if segment.payload]) > 10, "no window was ever used"
    assert counts["allowed answered"] > 50
    assert counts["evil alert"] > 10
    await arena.rest(inmate)


class Eager:
    """A launcher whose boxes hammer from their very first moment, before anybody else knows of them."""

    def __init__(self, launcher: NamespaceLauncher, lab: Lab) -> None:
        self._launcher = launcher
        self._lab = lab
        self.attackers: list[Attacker] = []

    async def create(self, spec: BoxSpec) -> Box:
        box = await self._launcher.create(spec)
        _, attacker = await start_agent(box)
        self.attackers.append(attacker)
        assert await attacker.python(hammering(attacker)) == "begun"
        await asyncio.sleep(0.05)
        assert self._lab.packets() == [], "there is no policy yet"
        return box

    async def close(self) -> None:
        pass


async def test_a_box_that_is_faster_than_its_policy(
    arena: Arena, launcher: NamespaceLauncher, tmp_path: Path
) -> None:
    arena.lab.reset()
    eager, store = Eager(launcher, arena.lab), PolicyStore(arena.gate, arena.audit)
    boxes = Boxes(gate=arena.gate, store=store, launcher=eager, snapshots=Snapshots(tmp_path / "kept"))
    box = await boxes.create(CreateBox(), NetworkPolicy.parse(CUSTOM))
    await arena.lab.expect_async(lambda: arena.lab.connections(plan.ALLOWED4))
    counts: Any = await eager.attackers[0].python(_STOP)
    await eager.attackers[0].close()
    await boxes.delete(box)
    await boxes.close()
    assert counts["allowed answered"] > 0
    assert arena.lab.packets(plan.EVIL4) == []
    assert {question.name for question in arena.lab.dns.questions} <= {"allowed.test"}


async def test_two_hands_at_once(arena: Arena) -> None:
    # Whatever comes in whichever order: what was acknowledged last is what the box meets.
    inmate = await arena.inmate("deny-all", id="raced")
    store = PolicyStore(arena.gate, arena.audit)
    store.create("raced", NetworkPolicy.parse("deny-all"), source="test")
    # Large ones are compiled in a thread, and are overtaken by small ones.
    large = CUSTOM | {"allowed_domains": [f"host-{number}.test" for number in range(3000)]}
    policies = [
        NetworkPolicy.parse(policy) for policy in (large, "allow-all", CUSTOM, "deny-all", large, ELSEWHERE)
    ]
    for _ in range(5):
        acknowledged: list[Any] = []

        async def put(policy: NetworkPolicy, done: list[Any] = acknowledged) -> None:
            done.append(await store.put("raced", policy, source="test"))

        await asyncio.gather(*(put(policy) for policy in policies))
        last = max(acknowledged, key=lambda in_force: in_force.generation)
        assert store.get("raced") == last == acknowledged[-1]
        gated = arena.gated(inmate)
        assert (gated.policy.policy, gated.generation) == (last.policy, last.generation)
        arena.begin(inmate)
        await tls(plan.EVIL4, b"evil.test")(inmate.attacker) if last.policy.kind != "allow-all" else None
        assert arena.lab.packets(plan.EVIL4) == []
