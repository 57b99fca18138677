"""TCP with all its bells and whistles: no port, option or end of a connection is a way round the gate."""

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from box_policy.audit.records import Event
from box_policy.gate.limits import Limits
from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.attack import Act, Attack
from tests.adversary.attacker import Attacker, Seen
from tests.adversary.conftest import OpenArena
from tests.adversary.in_the_box import runs, together
from tests.adversary.wire import allowed_tls, hello, http, sends, tls
from tests.lab import Lab, plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "TCP"

DENIED = (Reason.NAME_NOT_ALLOWED,)
UNKNOWN = (Reason.PROTOCOL_UNKNOWN,)
PORTS = (1, 21, 22, 25, 80, 123, 443, 465, 587, 853, 3128, 5432, 8080, 8443, 9418, 61001, 61053, 65535)


def secret(box: Attacker) -> bytes:
    return b"\0\0\0\0" + box.nonce.encode()


def greeting(start: bytes) -> Callable[[Attacker], bytes]:
    return lambda box: start + box.nonce.encode() + b"\r\n"


def evil_hello(box: Attacker) -> bytes:
    return hello(box, b"evil.test")


def fast_open(address: str, name: bytes) -> Act:
    """The hello is in the SYN, as far as the kernel lets it."""

    async def act(box: Attacker) -> Seen:
        line = await box.connect(address, 443, fast_open=base64.b64encode(hello(box, name)).decode())
        seen = await line.read(size=7) if line.error is None else await line.see()
        await line.close()
        return seen

    return act


def ended(address: str, name: bytes, *, reset: bool = False) -> Act:
    """The client has gone as soon as its hello is sent."""

    async def act(box: Attacker) -> Seen | None:
        line = await box.connect(address, 443)
        await line.send(hello(box, name))
        await line.close(reset=reset)
        return None

    return act


def half_closed(address: str, name: bytes) -> Act:
    async def act(box: Attacker) -> Seen:
        line = await box.connect(address, 443)
        await line.send(hello(box, name))
        await line.end()
        seen = await line.read(size=7)
        await line.close()
        return seen

    return act


def evil_on_every_port(address: str) -> list[Act]:
    named = [http(address, f"evil.test:{port}".encode(), port) for port in PORTS]
    return [
        *named,
        *(tls(address, b"evil.test", port) for port in PORTS),
        *(sends(address, port, secret) for port in PORTS),
    ]


# What a program does to its socket, and where it connects to then.
SOCKETS = {
    "a source port of 53": ("", "sock.bind(('', 53))"),
    "a source port of 443": ("", "sock.bind(('', 443))"),
    "another loopback address as its source": ("", "sock.bind(('127.9.9.9', 0))"),
    "the box's own address as its source": ("", "sock.bind(('10.0.2.15', 0))"),
    "its socket bound to lo": ("", "sock.setsockopt(socket.SOL_SOCKET, 25, b'lo')"),
    "a record of its route": ("", "sock.setsockopt(socket.IPPROTO_IP, 4, bytes([7, 11, 4]) + bytes(9))"),
    "time stamps of its route": (
        "",
        "sock.setsockopt(socket.IPPROTO_IP, 4, bytes([68, 12, 5, 0]) + bytes(8))",
    ),
    "every bit of the type of service": ("", "sock.setsockopt(socket.IPPROTO_IP, 1, 255)"),
    "no routing": ("", "sock.setsockopt(socket.SOL_SOCKET, 5, 1)"),
    "a time to live of 1": ("", "sock.setsockopt(socket.IPPROTO_IP, 2, 1)"),
    "the smallest segments": ("", "sock.setsockopt(socket.IPPROTO_TCP, 2, 88)"),
    "the smallest window": ("", "sock.setsockopt(socket.IPPROTO_TCP, 10, 1)"),
    "a source port of 53 on IPv6": ("6", "sock.bind(('', 53))"),
    "every bit of the traffic class": ("6", "sock.setsockopt(socket.IPPROTO_IPV6, 67, 255)"),
}

# What the kernel refuses, or drops on the way: the program has only itself to blame.
DEAD_ENDS = {
    "a loose source route": (
        "",
        "sock.setsockopt(socket.IPPROTO_IP, 4, b'\\x83\\7\\4' + ELSEWHERE + bytes(1))",
    ),
    "a strict source route": (
        "",
        "sock.setsockopt(socket.IPPROTO_IP, 4, b'\\x89\\7\\4' + ELSEWHERE + bytes(1))",
    ),
    "a foreign source": ("", "sock.bind(('8.8.8.8', 0))"),
    "a foreign source that need not exist": (
        "",
        "sock.setsockopt(socket.IPPROTO_IP, 15, 1); sock.bind(('8.8.8.8', 0))",
    ),
    "a foreign IPv6 source that need not exist": (
        "6",
        "sock.setsockopt(socket.IPPROTO_IPV6, 78, 1); sock.bind(('2001:4860:4860::8888', 0))",
    ),
    "a routing header": (
        "6",
        "sock.setsockopt(socket.IPPROTO_IPV6, 57, bytes([0, 2, 0, 1, 0, 0, 0, 0]) + ELSEWHERE6)",
    ),
    "a segment routing header": (
        "6",
        "sock.setsockopt(socket.IPPROTO_IPV6, 57, bytes([0, 4, 4, 1, 1, 0, 0, 0]) + bytes(16) + ELSEWHERE6)",
    ),
}

CONNECTED = """
sock = opened(socket.AF_INET{family}, timeout={patience})
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
{change}
sock.connect(({address!r}, 443))
result = end_of(sock, HELLO)
"""

URGENT = f"""
sock = opened(socket.AF_INET)
sock.connect(({plan.EVIL4!r}, 443))
middle = HELLO.index(b"evil") + 2
sock.sendall(HELLO[:middle])
sock.send(b"x", socket.MSG_OOB)
result = end_of(sock, HELLO[middle:])
"""

MULTIPATH = f"""
try:
    sock = opened(socket.AF_INET, socket.SOCK_STREAM, 262)
except OSError:
    sock = opened(socket.AF_INET)  # this kernel doesn't have it
sock.connect(({plan.EVIL4!r}, 443))
result = end_of(sock, HELLO)
"""

TWO_FROM_ONE_PORT = f"""
good, bad = opened(socket.AF_INET), opened(socket.AF_INET)
for sock in (good, bad):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("10.0.2.15", 5000))
good.connect(({plan.CIDR4!r}, {plan.ECHO_PORT}))
bad.connect(({plan.EVIL4!r}, {plan.ECHO_PORT}))
result = end_of(bad, NONCE) + ", " + end_of(good, b"hello")
"""


def connected(family: str, change: str, patience: float = 6) -> Act:
    elsewhere = f"ELSEWHERE = socket.inet_aton({plan.ALLOWED4!r})\n"
    elsewhere += f"ELSEWHERE6 = socket.inet_pton(socket.AF_INET6, {plan.ALLOWED6!r})\n"
    address = plan.EVIL6 if family else plan.EVIL4
    source = CONNECTED.format(family=family, change=change, address=address, patience=patience)
    return runs(elsewhere + source, HELLO=evil_hello)


ATTACKS = [
    *(
        Attack(
            name=f"every port of {what}",
            act=together(*evil_on_every_port(address)),
            sees="alert 49, http 403, reset",
            reasons=sorted((*DENIED * 2 * len(PORTS), *UNKNOWN * len(PORTS))),
        )
        for what, address in (("the attacker", plan.EVIL4), ("the attacker's IPv6 address", plan.EVIL6))
    ),
    *(
        Attack(name=f"a denied hello with {what}", act=connected(*how), sees="alert 49", reasons=DENIED)
        for what, how in SOCKETS.items()
    ),
    *(
        Attack(name=f"a denied hello by {what}", act=connected(*how, 0.2), may_be_silent=True, reasons=())
        for what, how in DEAD_ENDS.items()
    ),
    Attack(
        name="a denied name with urgent data in its midst",
        act=runs(URGENT, HELLO=evil_hello),
        sees="alert 49",
        reasons=DENIED,
    ),
    Attack(
        name="a denied hello over Multipath TCP",
        act=runs(MULTIPATH, HELLO=evil_hello),
        sees="alert 49",
        reasons=DENIED,
    ),
    Attack(
        name="a denied connection from the port of an allowed one",
        act=runs(TWO_FROM_ONE_PORT),
        sees="the end, data",
        reasons=UNKNOWN,
    ),
    Attack(
        name="a denied hello in the SYN",
        act=fast_open(plan.EVIL4, b"evil.test"),
        sees="alert 49",
        reasons=DENIED,
    ),
    Attack(
        name="an allowed hello in the SYN to a foreign address",
        act=fast_open(plan.EVIL4, b"allowed.test"),
        must_arrive=True,
        sees="data",
        reasons=(),
    ),
    Attack(
        name="a denied hello with 64 kilobytes behind it",
        act=sends(plan.EVIL4, 443, lambda box: evil_hello(box) + b"\x17\3\3\x40\0" * 13000),
        sees="alert 49",
        reasons=DENIED,
    ),
    Attack(
        name="a denied hello, and no more to come",
        act=half_closed(plan.EVIL4, b"evil.test"),
        sees="alert 49",
        reasons=DENIED,
    ),
    Attack(
        name="an allowed hello, and no more to come",
        act=half_closed(plan.EVIL4, b"allowed.test"),
        must_arrive=True,
        sees="data",
        reasons=(),
    ),
    *(
        Attack(name=f"a denied hello, and then {what}", act=ended(plan.EVIL4, b"evil.test", reset=reset))
        for what, reset in (("a reset", True), ("the end", False))
    ),
    # Encrypted ways to public resolvers.
    Attack(
        name="DNS over TLS",
        act=tls("1.1.1.1", b"cloudflare-dns.com", 853),
        sees="alert 49",
        reasons=DENIED,
    ),
    Attack(
        name="DNS over TLS without a name",
        act=tls("2606:4700:4700::1111", None, 853),
        sees="alert 49",
        reasons=(Reason.NO_NAME,),
    ),
    Attack(name="DNS over HTTPS", act=tls("8.8.8.8", b"dns.google"), sees="alert 49", reasons=DENIED),
    Attack(
        name="DNS over HTTPS without a name",
        act=tls("1.1.1.1", None),
        sees="alert 49",
        reasons=(Reason.NO_NAME,),
    ),
    Attack(
        name="DNS over HTTPS under an allowed name",
        act=allowed_tls("1.1.1.1", b"allowed.test"),
        must_arrive=True,
        reasons=(),
    ),
    Attack(
        name="DNS over TLS under an allowed name, which has no such service",
        act=tls("1.1.1.1", b"allowed.test", 853),
        may_arrive=True,
        sees="alert 80",
        reasons=(),
    ),
    *(
        Attack(
            name=f"{what} to an allowed name's address",
            act=sends(plan.ALLOWED4, port, greeting(start)),
            sees="reset",
            reasons=UNKNOWN,
        )
        for what, port, start in (
            ("mail", 25, b"EHLO "),
            ("mail submission", 587, b"EHLO "),
            ("SSH", 22, b"SSH-2.0-"),
        )
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "end"])
async def test_clients_that_go_at_once(arena: Arena, lab: Lab, reset: bool) -> None:
    """Each denial is recorded, and of what was allowed nothing stays open."""
    inmate = await arena.inmate()
    arena.begin(inmate)
    for _ in range(20):
        await ended(plan.EVIL4, b"evil.test", reset=reset)(inmate.attacker)
        await ended(plan.ALLOWED4, b"allowed.test", reset=reset)(inmate.attacker)
    await arena.rest(inmate)
    assert len([record for record in arena.records if record.event is Event.DECISION]) == 40
    assert set(arena.denials()) <= {Reason.NAME_NOT_ALLOWED, Reason.CLIENT_GONE}
    await lab.expect_async(lambda: all(connection.closed for connection in lab.connections()))


async def test_clients_that_never_read_why(open_arena: OpenArena) -> None:
    """They have a moment to, and then their connections are closed, however small their windows."""
    arena = await open_arena(limits=Limits(linger=0.3))
    inmate = await arena.inmate()
    box = inmate.attacker
    lines = [await box.connect(plan.EVIL4, 443, receive_buffer=1) for _ in range(50)]
    await asyncio.gather(*(line.send(evil_hello(box)) for line in lines))
    await arena.rest(inmate)
    assert arena.denials() == [Reason.NAME_NOT_ALLOWED] * 50
    assert {str(await line.see()) for line in lines} == {"alert 49"}


async def test_nobody_outside_is_answered(open_arena: OpenArena) -> None:
    """On its own host the gate has no port open: its listeners are in its boxes."""
    before = listening()
    arena = await open_arena()
    inmate = await arena.inmate()
    await inmate.attacker.exchange(plan.EVIL4, 443, evil_hello(inmate.attacker))
    assert listening() == before


def listening() -> list[str]:
    """What is bound in the network namespace of the gate."""
    found = []
    for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        rows = [line.split() for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]]
        found += [f"{table} {row[1]}" for row in rows if row[3] == state]
    return sorted(found)
