"""Hellos cut, glued, doubled, broken or half: read as a real server reads them, or refused.

The name of a connection is the one in its ClientHello, however that comes. What can't be read in one way
only is refused, with an alert; what doesn't begin as TLS does is reset.
"""

import asyncio
import base64

import pytest

from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.attack import EVIL, HIDDEN, Act, Attack
from tests.adversary.attacker import Attacker, Seen
from tests.adversary.hostile_hellos import (
    ALLOWED,
    ALPN,
    AMBIGUOUS,
    BROKEN,
    CHANGE_CIPHER_SPEC,
    EARLY_DATA,
    FRONT,
    NAMELESS,
    NOT_TLS,
    RESUMPTION,
    TICKET,
    TOO_LARGE,
    VERSIONS,
    MakeHello,
    cut_in_name,
)
from tests.adversary.wire import allowed_tls, carried, hello, sends, sends_each, start_of_answer, tls
from tests.lab import plan
from tests.lab.hellos import HOST_NAME, server_name

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "TLS"


def in_small_records(size: int) -> Act:
    """The secret is in the name, and so in the question for it: in the hello it is cut."""
    return carried(
        plan.WILDCARD4, 443, lambda box: hello(box, box.nonce.encode() + b".wild.test", fragment=size)
    )


def in_two_segments(name: bytes) -> Act:
    """A hello in two segments, cut at every place in the name and on both sides of it."""

    async def attempt(box: Attacker, data: bytes, cut: int) -> Seen:
        line = await box.connect(plan.EVIL4, 443)
        await line.send(data[:cut])
        await line.send(data[cut:])
        seen = await line.see()
        await line.close()
        return seen

    async def act(box: Attacker) -> Seen:
        data = hello(box, name)
        start = data.index(name)
        seen = await asyncio.gather(*(attempt(box, data, start + i) for i in range(len(name) + 1)))
        told = sorted(set(map(str, seen)))
        return seen[0] if len(told) == 1 else Seen(", ".join(told))

    return act


def with_fast_open(name: bytes) -> Act:
    """The hello is handed over with the connection's first packet (RFC 7413)."""

    async def act(box: Attacker) -> Seen:
        data = base64.b64encode(hello(box, name)).decode()
        line = await box.connect(plan.EVIL4, 443, fast_open=data)
        seen = await start_of_answer(line)
        await line.close()
        return seen

    return act


def with_urgent_data(name: bytes) -> Act:
    """A byte of urgent data in the middle of the name: what is read and what is passed on are the same."""

    async def act(box: Attacker) -> Seen:
        line = await box.connect(plan.EVIL4, 443)
        data = hello(box, name)
        cut = data.index(name) + 4
        await line.send(data[:cut])
        await box.python(f"import socket; agent.sockets[{line.number}].send(b'x', socket.MSG_OOB)")
        await line.send(data[cut:])
        seen = await start_of_answer(line)
        await line.close()
        return seen

    return act


def then_half_closed(name: bytes, cut: int | None = None) -> Act:
    """A hello, or its start, then FIN, while the client goes on listening."""

    async def act(box: Attacker) -> Seen:
        line = await box.connect(plan.ALLOWED4, 443)
        await line.send(hello(box, name)[:cut])
        await line.end()
        seen = await start_of_answer(line)
        await line.close()
        return seen

    return act


async def fronting(box: Attacker) -> Seen:
    """A whole handshake under an allowed name, and in it a request for another site of that address."""
    line = await box.connect(plan.SHARED4, 443)
    result = await line.tls(FRONT.decode())
    if "error" in result:
        return Seen(result["error"])
    await line.send(
        b"GET / HTTP/1.1\r\nHost: " + HIDDEN + b"\r\nX-Secret: " + box.nonce.encode() + b"\r\n\r\n"
    )
    seen = await line.read(until=b"\r\n")
    await line.close()
    return seen


CARRIED = {
    "in segments of a byte": carried(plan.ALLOWED4, 443, lambda box: hello(box, ALLOWED), segment=1),
    **{f"in records of {size} bytes": in_small_records(size) for size in (1, 2, 5, 16, 64)},
    "with TCP Fast Open": with_fast_open(ALLOWED),
    "with urgent data in its name": with_urgent_data(ALLOWED),
    "and the client's end": then_half_closed(ALLOWED),
    "with GREASE": allowed_tls(plan.ALLOWED4, ALLOWED, grease=True),
    "of post-quantum size": allowed_tls(plan.ALLOWED4, ALLOWED, padding=1800),
    "of 16 KiB in two records": allowed_tls(plan.ALLOWED4, ALLOWED, padding=17_000),
    "of 60 KiB with its name last": allowed_tls(
        plan.ALLOWED4,
        None,
        extra_extensions=[(0x1234, bytes(60_000)), server_name([(HOST_NAME, ALLOWED)])],
    ),
    "that resumes, at a foreign address": carried(
        plan.EVIL4, 443, lambda box: hello(box, ALLOWED, extra_extensions=RESUMPTION) + EARLY_DATA
    ),
    "with a ticket": allowed_tls(plan.ALLOWED4, ALLOWED, versions=(), extra_extensions=[TICKET]),
    "with Encrypted Client Hello": allowed_tls(plan.ALLOWED4, ALLOWED, ech=True),
    "with its certificate to be compressed": allowed_tls(
        plan.ALLOWED4, ALLOWED, extra_extensions=[(27, b"\x02\x00\x02")]
    ),
    "for TLS 1.2 only": allowed_tls(plan.ALLOWED4, ALLOWED, versions=()),
    **{
        f"that would speak {protocol[:10]!r}": allowed_tls(plan.ALLOWED4, ALLOWED, alpn=[protocol])
        for protocol in ALPN
    },
}
"""Forms of a hello with an allowed name that go through."""


def _refused(
    table: dict[str, MakeHello],
    reason: Reason,
    *,
    what: str = "a hello with {}",
    sees: str = "alert 49",
) -> list[Attack]:
    """At the address of an allowed name and of a denied one, which it shares with the first."""
    return [
        Attack(name=what.format(name), act=sends(plan.SHARED4, 443, data), sees=sees, reasons=(reason,))
        for name, data in table.items()
    ]


ATTACKS = [
    *(
        Attack(name=f"an allowed hello {how}", act=act, must_arrive=True, sees="data", reasons=())
        for how, act in CARRIED.items()
    ),
    Attack(
        name="a denied hello in segments of a byte",
        act=sends(plan.EVIL4, 443, lambda box: hello(box, EVIL), segment=1),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="a denied hello in records of a byte and segments of three",
        act=sends(plan.EVIL4, 443, lambda box: hello(box, EVIL, fragment=1), segment=3),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="a denied hello in two records, cut anywhere in its name",
        act=sends_each(plan.EVIL4, 443, cut_in_name(EVIL)),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,) * (len(EVIL) + 1),
    ),
    Attack(
        name="a denied hello in two records and small segments, cut anywhere in its name",
        act=sends_each(plan.EVIL4, 443, cut_in_name(EVIL), segment=7),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,) * (len(EVIL) + 1),
    ),
    Attack(
        name="a denied hello in two segments, cut anywhere in its name",
        act=in_two_segments(EVIL),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,) * (len(EVIL) + 1),
    ),
    Attack(
        name="a denied hello in records of every small size",
        act=sends_each(
            plan.EVIL4, 443, lambda box: [hello(box, EVIL, fragment=size) for size in (1, 2, 3, 4, 5, 16, 64)]
        ),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,) * 7,
    ),
    Attack(
        name="a denied hello with TCP Fast Open",
        act=with_fast_open(EVIL),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="a denied hello with urgent data in its name",
        act=with_urgent_data(EVIL),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="a denied hello and the client's end",
        act=then_half_closed(EVIL),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="half an allowed hello and the client's end",
        act=then_half_closed(ALLOWED, 60),
        sees="reset",
        reasons=(Reason.CLIENT_GONE,),
    ),
    Attack(
        name="a denied hello of every version",
        act=sends_each(
            plan.EVIL4,
            443,
            lambda box: [hello(box, EVIL, **fields) for fields in VERSIONS.values()],  # type: ignore[arg-type]
        ),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,) * len(VERSIONS),
    ),
    Attack(
        name="a denied hello with early data behind it",
        act=sends(plan.EVIL4, 443, lambda box: hello(box, EVIL, extra_extensions=RESUMPTION) + EARLY_DATA),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="a denied hello with application data behind it",
        act=sends(plan.EVIL4, 443, lambda box: hello(box, EVIL) + CHANGE_CIPHER_SPEC + EARLY_DATA * 1000),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="a denied hello with an allowed one behind it",
        act=sends(plan.EVIL4, 443, lambda box: hello(box, EVIL) + hello(box, ALLOWED)),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="a denied hello with Encrypted Client Hello",
        act=tls(plan.EVIL4, EVIL, ech=True),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="a denied hello of 60 KiB with its name last",
        act=tls(
            plan.EVIL4,
            None,
            extra_extensions=[(0x1234, bytes(60_000)), (0x1235, bytes(4_000)), server_name([(0, EVIL)])],
        ),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    *_refused(AMBIGUOUS, Reason.NAME_INVALID),
    *_refused(NAMELESS, Reason.NO_NAME),
    *_refused(BROKEN, Reason.HELLO_INVALID),
    *_refused(TOO_LARGE, Reason.HELLO_TOO_LARGE),
    *_refused(NOT_TLS, Reason.PROTOCOL_UNKNOWN, what="{}", sees="reset"),
    Attack(
        name="domain fronting: another site, seen by nobody, inside an allowed connection",
        act=fronting,
        may_arrive=True,
        may_name=(HIDDEN,),
    ),
    Attack(
        name="a name that does not exist",
        act=tls(plan.WILDCARD4, b"gone.wild.test"),
        zone={"gone.wild.test": {"rcode": "NXDOMAIN"}},
        sees="alert 80",
        reasons=(Reason.RESOLUTION_FAILED,),
    ),
    Attack(
        name="a name whose server fails",
        act=tls(plan.WILDCARD4, b"broken.wild.test"),
        zone={"broken.wild.test": {"rcode": "SERVFAIL"}},
        sees="alert 80",
        reasons=(Reason.RESOLUTION_FAILED,),
    ),
    Attack(
        name="an allowed name that refuses connections",
        act=tls(plan.ALLOWED4, ALLOWED, plan.REFUSED_PORT),
        sees="alert 80",
        reasons=(),
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    report = await arena.contains(attack)
    assert report.seen is not None
    assert report.seen.seconds < 1
    assert report.seen.kind != "alert" or report.seen.ended == "eof"


async def test_the_origin_gets_every_byte_as_it_was_sent(arena: Arena) -> None:
    inmate = await arena.inmate()
    arena.begin(inmate)
    data = hello(inmate.attacker, ALLOWED, fragment=7, extra_extensions=RESUMPTION[:1])
    data += CHANGE_CIPHER_SPEC + EARLY_DATA * 50
    line = await inmate.attacker.connect(plan.EVIL4, 443)
    await line.send(data, segment=100)
    await arena.lab.expect_async(lambda: [c for c in arena.lab.connections() if c.received == data])
    await line.close()


@pytest.mark.parametrize("newest", ["TLSv1_3", "TLSv1_2"])
async def test_the_client_sees_the_certificate_of_the_origin(arena: Arena, newest: str) -> None:
    """Nothing is decrypted on the way: the client trusts the lab's authority, and the name is checked."""
    inmate = await arena.inmate()
    arena.begin(inmate)
    line = await inmate.attacker.connect(plan.EVIL4, 443)
    result = await line.tls("allowed.test", authority=arena.lab.ca_pem.read_text(), newest=newest)
    assert result.get("error") is None
    assert result["version"] == newest.replace("_", ".")
    await line.send(b"GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n")
    assert str(await line.see()) == "http 200"
    assert [connection.sni for connection in arena.lab.connections()] == ["allowed.test"]
    await line.close()
