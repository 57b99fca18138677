"""DNS is itself a way out, and a way in: a question is judged and asked anew, an answer is told anew.

Of a question nothing but the name and the type of an allowed one reaches a name server; of an answer nothing
but records of that type reaches the box, and of addresses those that may be reached.
"""

import struct

import dns.message
import dns.rrset
import pytest

from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.asking import (
    NOT_ALLOWED,
    SERVER,
    Message,
    asks,
    denied,
    labels,
    malformed,
    message,
    next_answer,
    opt,
    option,
    over_tcp,
    over_udp,
    question,
    wire_name,
)
from tests.adversary.attack import Attack
from tests.adversary.attacker import Attacker, Seen
from tests.adversary.wire import hello, sends
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "DNS as a channel"

ALLOWED_NAME = wire_name("allowed.test")

PUBLIC_RESOLVERS = ("8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "2001:4860:4860::8888")
ONLY_CIDRS = {"mode": "custom", "allowed_cidrs": [plan.CIDR]}
DENYLIST = {"mode": "custom", "denied_cidrs": [f"{plan.EVIL4}/32"]}

NOT_SUPPORTED = "REFUSED 21 question_invalid"
INVALID = (Reason.QUESTION_INVALID,)

OTHER_TYPES = (
    *(
        "NULL",
        "HTTPS",
        "SVCB",
        "A6",
        "APL",
        "WKS",
        "HINFO",
        "DNAME",
        "TLSA",
        "SSHFP",
        "DNSKEY",
        "DS",
        "RRSIG",
    ),
    *("NSEC", "LOC", "URI", "HIP", "IPSECKEY", "AMTRELAY", "SPF", "TYPE65280", "TYPE65534", "TYPE0", "OPT"),
)
META_TYPES = ("ANY", "AXFR", "IXFR", "MAILA", "MAILB", "TSIG", "TKEY")


def with_more(rest: Message, *counts: int) -> Message:
    """A question that may be asked, with something behind it."""
    return lambda box: message(ALLOWED_NAME, rest=rest(box), counts=counts)


def claiming(questions: int) -> Message:
    return lambda box: message(wire_name(f"{box.nonce}.wild.test"), rest=b"", counts=(questions, 0, 0, 0))


def secret_options(box: Attacker) -> bytes:
    return (
        option(10, (box.nonce * 2).encode())  # a cookie
        + option(8, b"\0\1\x20\0" + box.nonce[:4].encode())  # a client's network
        + option(12, box.nonce.encode() * 20)  # padding
        + option(65001, box.nonce.encode())
    )


def secret_record(box: Attacker) -> bytes:
    return b"\0" + struct.pack("!HHIH", 16, 1, 60, 17) + b"\x10" + box.nonce.encode()


def transports() -> list[tuple[bool, str]]:
    return [(False, "over UDP"), (True, "over TCP")]


BASELINE = [
    Attack(
        name=f"an allowed name's {kind} record {how}",
        act=asks(question("NONCE.both.wild.test", kind), tcp=tcp),
        zone={"*.both.wild.test": {"A": [plan.WILDCARD4], "AAAA": [plan.ALLOWED6]}},
        must_arrive=True,
        sees=f"NOERROR {address}",
        reasons=(),
    )
    for kind, address in (("A", plan.WILDCARD4), ("AAAA", plan.ALLOWED6))
    for tcp, how in transports()
]

# A name carries data to whoever runs its zone.
IN_THE_NAME = [
    *(
        denied(
            f"a secret in a denied name, as {kind} {how}", question("NONCE.data0.evil.test", kind), tcp=tcp
        )
        for kind in ("A", "AAAA", "TXT", "HTTPS", "MX", "NULL", "CNAME", "NS", "SRV", "TYPE65280")
        for tcp, how in transports()
    ),
    *(
        denied(
            f"a secret in a name asked of {server} {how}", question("NONCE.evil.test"), server=server, tcp=tcp
        )
        for server in PUBLIC_RESOLVERS
        for tcp, how in transports()
    ),
    denied(
        "a secret in as long a name as there is",
        lambda box: message(labels(*[(box.nonce * 4)[:63].encode()] * 3, b"x" * 49, b"evil", b"test")),
    ),
    denied("a secret as a name of one label", question("NONCE")),
    denied("a secret below an allowed name", question("NONCE.allowed.test")),
    denied("a secret before an allowed name", question("NONCEallowed.test")),
    denied("a secret behind an allowed name", question("allowed.test.NONCE.test")),
    denied("the name above an allowed wildcard", question("wild.test")),
    denied("a secret in a reverse name", question("NONCE.66.81.51.in-addr.arpa", "PTR")),
    denied("a secret in a reverse name of IPv6", question("NONCE.0.1.5.f.0.a.2.ip6.arpa", "PTR")),
    denied("the discovery of an encrypted resolver", question("_dns.resolver.arpa", "SVCB")),
    denied("a name, while only addresses are allowed", question("NONCE.evil.test"), policy=ONLY_CIDRS),
    *(
        denied(
            f"{name} under deny-all {how}",
            data,
            "REFUSED 18 deny_all",
            Reason.DENY_ALL,
            policy="deny-all",
            tcp=tcp,
        )
        for name, data in (
            ("a secret in a name", question("NONCE.evil.test")),
            ("any name", question("allowed.test")),
        )
        for tcp, how in transports()
    ),
]

# Of a message that may be asked nothing travels on but its name and its type.
BESIDE_THE_NAME = [
    Attack(
        name="a secret in EDNS options of an allowed question",
        act=asks(lambda box: message(ALLOWED_NAME, rest=opt(secret_options(box)), counts=(1, 0, 0, 1))),
        sees=f"NOERROR {plan.ALLOWED4}",
        reasons=(),
    ),
    *(
        malformed(
            f"a secret {where}",
            with_more(rest, *counts),
        )
        for where, counts, rest in (
            ("behind the question", (1, 0, 0, 0), lambda box: box.nonce.encode()),
            ("behind the last record", (1, 0, 0, 1), lambda box: opt() + box.nonce.encode()),
            ("in an additional record", (1, 0, 0, 1), secret_record),
            ("in an answer", (1, 1, 0, 0), secret_record),
            ("in an authority record", (1, 0, 1, 0), secret_record),
            ("in a second OPT record", (1, 0, 0, 2), lambda box: opt() + opt(secret_options(box))),
            (
                "in a second question",
                (2, 0, 0, 0),
                lambda box: wire_name(f"{box.nonce}.evil.test") + struct.pack("!HH", 1, 1),
            ),
            ("in an option longer than the message", (1, 0, 0, 1), lambda box: opt(secret_options(box))[:-4]),
        )
    ),
    *(
        malformed(
            f"a secret in a message that claims {questions} questions",
            claiming(questions),
        )
        for questions in (0, 65535)
    ),
    malformed(
        "a secret in an EDNS version that nobody speaks",
        lambda box: message(ALLOWED_NAME, rest=opt(secret_options(box), version=1), counts=(1, 0, 0, 1)),
        "BADVERS 21 question_invalid",
    ),
]

# Types that bring what nobody judges are answered as if there were none.
TYPES = [
    *(
        Attack(
            name=f"an allowed name's {kind} records",
            act=asks(question("NONCE.wild.test", kind)),
            sees="NOERROR",
            reasons=(),
        )
        for kind in OTHER_TYPES
    ),
    *(
        malformed(f"{kind} of an allowed name {how}", question("NONCE.wild.test", kind), NOT_SUPPORTED)
        for kind in META_TYPES
        for _, how in transports()[:1]
    ),
    denied(
        "a zone transfer of an allowed name over TCP",
        question("NONCE.wild.test", "AXFR"),
        NOT_SUPPORTED,
        Reason.QUESTION_INVALID,
        tcp=True,
    ),
    *(
        malformed(
            f"an allowed name in class {class_}", question("NONCE.wild.test", class_=class_), NOT_SUPPORTED
        )
        for class_ in (0, 3, 4, 254, 255, 65280)
    ),
    *(
        malformed(
            f"opcode {opcode} for an allowed name",
            question("NONCE.wild.test", flags=0x100 | opcode << 11),
            "NOTIMP",
        )
        for opcode in (1, 2, 4, 5, 6, 15)
    ),
]


def answering(name: str, kind: str, *data: str, **more: str) -> dict[str, dict[str, bytes]]:
    """A zone in which a name has records of any type. ``more``: addresses of other names, beside them."""
    reply = dns.message.make_response(dns.message.make_query(name, kind))
    reply.answer.append(dns.rrset.from_text(name + ".", 60, "IN", kind, *data))
    for owner, address in more.items():
        reply.additional.append(dns.rrset.from_text(owner + ".", 60, "IN", "A", address))
    return {name: {"raw": reply.to_wire()}}


OF_OTHERS = {"far.test": plan.EVIL4, "host.far.test": plan.EVIL4, "allowed.test": plan.EVIL4}
SERVED = {
    "MX": "10 mail.far.test.",
    "NS": "ns.far.test.",
    "SOA": "ns.far.test. hostmaster.far.test. 1 2 3 4 5",
    "SRV": "1 2 443 host.far.test.",
    "PTR": "host.far.test.",
    "CAA": '0 issue "ca.far.test"',
    "NAPTR": '1 2 "S" "SIP+D2U" "" _sip._udp.far.test.',
    "TXT": '"v=spf1 -all" "second"',
    "CNAME": "far.test.",
}

TOLD = [
    *(
        Attack(
            name=f"an allowed name's {kind} record, and addresses of others beside it",
            act=asks(question(f"{kind}.rebind.test", kind)),
            zone=answering(f"{kind.lower()}.rebind.test", kind, data, **OF_OTHERS),
            sees=f"NOERROR {data}",
            reasons=(),
        )
        for kind, data in SERVED.items()
    ),
    Attack(
        name="a chain of aliases to a denied name",
        act=asks(question("NONCE.alias.wild.test")),
        zone={"*.alias.wild.test": {"CNAME": "mid.far.test"}, "mid.far.test": {"CNAME": "evil.test"}},
        must_arrive=True,
        sees=f"NOERROR {plan.EVIL4}",
        reasons=(),
    ),
    Attack(
        name="an answer of more records than fit over UDP",
        act=asks(question("NONCE.many.wild.test")),
        zone={"*.many.wild.test": {"A": [f"51.81.10.{number}" for number in range(200)]}},
        must_arrive=True,
        sees=f"NOERROR {' '.join(sorted(f'51.81.10.{number}' for number in range(64)))}",
        reasons=(),
    ),
]


async def _wire_guard(box: Attacker) -> Seen:
    initiation = b"\x01\0\0\0" + box.nonce.encode() * 9  # message type 1, 148 bytes
    return await over_udp(box, initiation, plan.EVIL4)


async def _half_a_header(box: Attacker) -> Seen:
    return await over_udp(box, box.nonce.encode()[:11], plan.EVIL4, patience=0.1)


async def _an_answer(box: Attacker) -> Seen:
    return await over_udp(box, message(wire_name(f"{box.nonce}.wild.test"), flags=0x8180), patience=0.1)


async def _pipeline(box: Attacker) -> Seen:
    """Fifty questions in one segment, of which only one may be asked."""
    allowed = message(wire_name("allowed.test"), id=7)
    secret = [message(wire_name(f"n{number}.{box.nonce}.evil.test")) for number in range(49)]
    line = await box.connect(SERVER, plan.DNS_PORT)
    await line.send(b"".join(len(data).to_bytes(2) + data for data in [*secret, allowed]))
    seen = [await next_answer(line) for _ in range(50)]
    await line.close()
    return Seen(" ".join(sorted({each.kind for each in seen})))


async def _half_closed(box: Attacker) -> Seen:
    data = question("NONCE.half.wild.test")(box)
    line = await box.connect(SERVER, plan.DNS_PORT)
    await line.send(len(data).to_bytes(2) + data)
    await line.end()
    seen = await next_answer(line)
    await line.close()
    return seen


NO_QUESTIONS = [
    Attack(
        name="a question over TCP, and no more to come",
        act=_half_closed,
        zone={"*.half.wild.test": {"A": [plan.WILDCARD4]}},
        must_arrive=True,
        sees=f"NOERROR {plan.WILDCARD4}",
        reasons=(),
    ),
    Attack(name="WireGuard to port 53", act=_wire_guard, sees="FORMERR", reasons=INVALID),
    Attack(name="half a header", act=_half_a_header, may_be_silent=True, sees="silence", reasons=INVALID),
    Attack(
        name="an answer that nobody asked for",
        act=_an_answer,
        may_be_silent=True,
        sees="silence",
        reasons=INVALID,
    ),
    Attack(
        name="a datagram as large as there is",
        act=asks(lambda box: message(wire_name("allowed.test"), rest=box.nonce.encode() * 4000)),
        sees="FORMERR",
        reasons=INVALID,
    ),
    Attack(
        name="TLS to TCP port 53",
        act=sends(plan.EVIL4, 53, lambda box: hello(box, b"allowed.test")),
        sees="reset",
        reasons=INVALID,
    ),
    Attack(
        name="HTTP to TCP port 53",
        act=sends(
            plan.EVIL4, 53, lambda box: f"GET /{box.nonce} HTTP/1.1\r\nHost: allowed.test\r\n\r\n".encode()
        ),
        sees="reset",
        reasons=INVALID,
    ),
    Attack(
        name="an empty message over TCP",
        act=sends(plan.EVIL4, 53, lambda box: b"\0\0" + box.nonce.encode()),
        sees="reset",
        reasons=INVALID,
    ),
    Attack(
        name="many questions in one segment over TCP",
        act=_pipeline,
        sees=f"NOERROR {plan.ALLOWED4} {NOT_ALLOWED}",
        reasons=(Reason.NAME_NOT_ALLOWED,) * 49,
    ),
]

ATTACKS = [*BASELINE, *IN_THE_NAME, *BESIDE_THE_NAME, *TYPES, *TOLD, *NO_QUESTIONS]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)


async def test_what_the_records_say(arena: Arena) -> None:
    """Who asked for what, and that nobody else was."""
    inmate = await arena.inmate()
    arena.begin(inmate)
    for kind in ("NULL", "TYPE65280", "TXT"):
        await over_tcp(inmate.attacker, message(wire_name("A.wild.test"), kind))
    assert [(each.name, each.rule, each.detail) for each in arena.records] == [
        ("A.wild.test", "allowed_domains: *.wild.test", "NULL answered as empty"),
        ("A.wild.test", "allowed_domains: *.wild.test", "TYPE65280 answered as empty"),
        ("A.wild.test", "allowed_domains: *.wild.test", "TXT"),
    ]
    assert [asked.type for asked in arena.lab.dns.questions] == ["TXT"]
