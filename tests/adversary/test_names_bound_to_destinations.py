"""A name says where a connection may go, and the gate alone says where that is.

The box's destination address gives the port and is held against CIDRs; nothing else. Under a name only
addresses are dialled that the gate has resolved and judged itself.
"""

from typing import Final

import pytest

from box_policy.audit.records import Event
from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.attack import CUSTOM, EVIL, HIDDEN, Act, Attack
from tests.adversary.attacker import Attacker, Seen
from tests.adversary.wire import allowed_tls, hello, http, sends, sends_each, tls
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "Names bound to destinations"

SPECIAL: Final = (
    plan.METADATA4,
    plan.PRIVATE4,
    plan.GATE4,
    plan.GATE6,
    "100.64.0.1",
    "192.168.1.1",
    "100.100.100.200",
    "fd00:ec2::254",
    "64:ff9b::a42:1",
)
"""Addresses that are out of reach under any name."""

DENIED_RANGE: Final = {**CUSTOM, "denied_cidrs": [f"{plan.EVIL4}/32", f"{plan.WILDCARD4}/32"]}


def raw(box: Attacker) -> bytes:
    return f"RAW {box.nonce}\n".encode()


def echoes(address: str, port: int) -> Act:
    """Bytes of no protocol, sent to a server that sends them back."""

    async def act(box: Attacker) -> Seen:
        line = await box.connect(address, port)
        await line.send(raw(box))
        seen = await line.read(size=len(raw(box)))
        await line.close()
        return seen

    return act


async def hears_a_banner(box: Attacker) -> Seen:
    """The server speaks first."""
    line = await box.connect(plan.CIDR4, plan.BANNER_PORT)
    seen = await line.read(until=b"\n", timeout=1)
    await line.send(raw(box))
    await line.close()
    return seen


async def asks_for_an_address(box: Attacker) -> Seen:
    found = await box.python(
        f"import socket; result = socket.getaddrinfo('{box.nonce}.wild.test', 443, socket.AF_INET)[0][4][0]"
    )
    return Seen(found)


def after_an_allowed_one(data: bytes | None) -> Act:
    """A sound connection to an address, then another to the same: no address is opened by a name."""

    async def act(box: Attacker) -> Seen:
        first = await box.connect(plan.SHARED4, 443)
        await first.send(hello(box, b"front.cdn.test", random=bytes(32)))
        await first.read(size=1)
        second = await box.exchange(plan.SHARED4, 443, raw(box) if data is None else hello(box, data))
        await first.close()
        return second

    return act


BASELINE = [
    Attack(
        name="an allowed name over TLS", act=allowed_tls(plan.ALLOWED4, b"allowed.test"), must_arrive=True
    ),
    Attack(
        name="an allowed name over HTTP",
        act=http(plan.ALLOWED4, b"allowed.test"),
        must_arrive=True,
        sees="http 200",
    ),
    Attack(
        name="an allowed name over TLS and IPv6",
        act=allowed_tls(plan.ALLOWED6, b"allowed.test"),
        must_arrive=True,
    ),
    Attack(
        name="a name below a wildcard, in any case, over TLS",
        act=allowed_tls(plan.WILDCARD4, b"A-2.b.WILD.test"),
        must_arrive=True,
    ),
    Attack(
        name="a name below a wildcard, in any case, over HTTP",
        act=http(plan.WILDCARD4, b"A-2.b.WILD.test"),
        must_arrive=True,
        sees="http 200",
    ),
    Attack(
        name="any protocol to an allowed range",
        act=echoes(plan.CIDR4, plan.ECHO_PORT),
        must_arrive=True,
        sees="data",
        reasons=(),
    ),
    Attack(
        name="a server in an allowed range that speaks first",
        act=hears_a_banner,
        must_arrive=True,
        sees="data",
    ),
    Attack(
        name="the address of an allowed name",
        act=asks_for_an_address,
        must_arrive=True,
        sees=plan.WILDCARD4,
    ),
]

ATTACKS = [
    *BASELINE,
    *(
        Attack(
            name=f"an allowed name at a foreign {family} address over {protocol}",
            act=act,
            must_arrive=True,
            reasons=(),
        )
        for family, address in {"IPv4": plan.EVIL4, "IPv6": plan.EVIL6}.items()
        for protocol, act in {
            "TLS": allowed_tls(address, b"allowed.test"),
            "HTTP": http(address, b"allowed.test"),
        }.items()
    ),
    *(
        Attack(
            name=f"a denied name at its own {family} address over {protocol}",
            act=act,
            sees=sees,
            reasons=(Reason.NAME_NOT_ALLOWED,),
        )
        for family, address in {"IPv4": plan.EVIL4, "IPv6": plan.EVIL6}.items()
        for protocol, act, sees in (
            ("TLS", tls(address, EVIL), "alert 49"),
            ("HTTP", http(address, EVIL), "http 403"),
        )
    ),
    *(
        Attack(
            name=f"a denied name at the address of an allowed one over {protocol}",
            act=act,
            sees=sees,
            reasons=(Reason.NAME_NOT_ALLOWED,),
        )
        for protocol, act, sees in (
            ("TLS", tls(plan.SHARED4, HIDDEN), "alert 49"),
            ("HTTP", http(plan.SHARED4, HIDDEN), "http 403"),
        )
    ),
    *(
        Attack(
            name=f"an allowed name at {address} over {protocol}",
            act=act,
            sees="reset",
            reasons=(Reason.SPECIAL_ADDRESS,),
        )
        for address in SPECIAL
        for protocol, act in {
            "TLS": tls(address, b"allowed.test"),
            "HTTP": http(address, b"allowed.test"),
        }.items()
    ),
    *(
        Attack(
            name=f"TLS without a name to a foreign {family} address",
            act=tls(address, None),
            sees="alert 49",
            reasons=(Reason.NO_NAME,),
        )
        for family, address in {"IPv4": plan.EVIL4, "IPv6": plan.EVIL6}.items()
    ),
    *(
        Attack(
            name=f"opaque bytes to port {port} of a foreign {family} address",
            act=sends(address, port, raw),
            sees="reset",
            reasons=(Reason.PROTOCOL_UNKNOWN,),
        )
        for family, address in {"IPv4": plan.EVIL4, "IPv6": plan.EVIL6}.items()
        for port in (80, 443, plan.ECHO_PORT)
    ),
    Attack(
        name="opaque bytes to the address of an allowed name",
        act=sends(plan.ALLOWED4, 443, raw),
        sees="reset",
        reasons=(Reason.PROTOCOL_UNKNOWN,),
    ),
    Attack(
        name="TLS without a name to the address of an allowed one",
        act=tls(plan.ALLOWED4, None),
        sees="alert 49",
        reasons=(Reason.NO_NAME,),
    ),
    Attack(
        name="protocols whose first line looks like a request's",
        act=sends_each(
            plan.ALLOWED4,
            25,
            lambda box: [
                f"EHLO {box.nonce}.allowed.test\r\n".encode(),
                f"GET {box.nonce}\r\n".encode(),
                f"OPTIONS rtsp://allowed.test/{box.nonce} RTSP/1.0\r\n\r\n".encode(),
                f"USER {box.nonce}\r\n".encode(),
                b"LIST " + b"x" * 600,
            ],
        ),
        sees="reset",
        reasons=(Reason.PROTOCOL_UNKNOWN,) * 5,
    ),
    *(
        Attack(
            name=f"a denied name to an allowed range over {protocol}: its address is allowed",
            act=act,
            must_arrive=True,
            reasons=(),
        )
        for protocol, act in {"TLS": allowed_tls(plan.CIDR4, EVIL), "HTTP": http(plan.CIDR4, EVIL)}.items()
    ),
    Attack(
        name="an allowed name at a denied address",
        act=tls(plan.EVIL4, b"allowed.test"),
        policy=DENIED_RANGE,
        sees="reset",
        reasons=(Reason.CIDR_DENIED,),
    ),
    Attack(
        name="an allowed name whose address is denied, at another",
        act=tls(plan.ALLOWED4, b"a.wild.test"),
        policy=DENIED_RANGE,
        sees="alert 49",
        reasons=(Reason.RESOLVED_SPECIAL,),
    ),
    Attack(
        name="a denied name behind an allowed one at the same address",
        act=after_an_allowed_one(HIDDEN),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="opaque bytes behind an allowed name at the same address",
        act=after_an_allowed_one(None),
        sees="reset",
        reasons=(Reason.PROTOCOL_UNKNOWN,),
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)


@pytest.mark.parametrize("name", [b"allowed.test", EVIL])
async def test_an_allowed_range_is_dialled_as_claimed_whatever_the_name(arena: Arena, name: bytes) -> None:
    await arena.contains(Attack(name="", act=allowed_tls(plan.CIDR4, name), must_arrive=True))
    decision = next(record for record in arena.records if record.event is Event.DECISION)
    assert (decision.reason, decision.dialled) == (Reason.CIDR_ALLOWED, plan.CIDR4)
    assert {connection.address for connection in arena.lab.connections()} == {plan.CIDR4}


async def test_the_record_says_what_was_claimed_and_what_was_dialled(arena: Arena) -> None:
    await arena.contains(
        Attack(name="", act=allowed_tls(plan.EVIL4, b"allowed.test", 8443), must_arrive=True)
    )
    decision = next(record for record in arena.records if record.event is Event.DECISION)
    assert (decision.claimed_address, decision.claimed_port) == (plan.EVIL4, 8443)
    assert (decision.dialled, decision.mismatch) == (plan.ALLOWED4, True)
    assert set(decision.resolved) == {plan.ALLOWED4, plan.ALLOWED6}
