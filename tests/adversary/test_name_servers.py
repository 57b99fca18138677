"""A zone's owner is no friend: what name servers send, and whom else they try to tell it."""

import asyncio
import itertools
import random
import struct
from collections.abc import AsyncIterator, Callable, Sequence

import dns.message
import dns.rrset
import pytest
import pytest_asyncio

from box_policy.audit.records import MAX_NAME
from box_policy.gate.resolver import A, NameServers, Resolver
from box_policy.policy.reasons import Reason
from box_policy.sandbox.namespaces import NamespaceLauncher
from tests.adversary.arena import Arena, Inmate
from tests.adversary.asking import SERVER, labels, message, over_tcp, over_udp, wire_name
from tests.adversary.attack import CUSTOM
from tests.adversary.conftest import OpenArena
from tests.adversary.hostile_server import HERE, Answers, HostileServer
from tests.lab import Lab, plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVIL = bytes(map(int, plan.EVIL4.split(".")))
GOOD = bytes(map(int, plan.WILDCARD4.split(".")))
LOST = "SERVFAIL 23 resolution_failed"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hostile_arena(
    running_lab: Lab, launcher: NamespaceLauncher
) -> AsyncIterator[tuple[Arena, HostileServer]]:
    server = HostileServer()
    await server.start()
    arena = await Arena.open(running_lab, launcher, name_servers=(HERE,))
    yield arena, server
    await arena.close()
    await server.close()


@pytest_asyncio.fixture(loop_scope="module")
async def rig(
    hostile_arena: tuple[Arena, HostileServer], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Arena, HostileServer, Inmate]]:
    """The gate, the server, and a box that may ask for all below wild.test. The gate is impatient."""
    monkeypatch.setattr("box_policy.gate.resolver._ATTEMPT_TIMEOUT", 0.15)
    arena, server = hostile_arena
    inmate = await arena.inmate()
    arena.begin(inmate)
    server.asked.clear()
    server.elsewhere = server.over_udp = server.over_tcp = lambda _: []
    yield arena, server, inmate
    await arena.rest(inmate)
    assert [record.getMessage() for record in arena.errors] == [], "the gate itself has failed"


def section(query: bytes) -> bytes:
    """The question section of the gate's query: all but the header and the OPT record."""
    return query[12:-11]


def record(
    data: bytes = EVIL, *, owner: bytes = b"\xc0\x0c", kind: int = 1, class_: int = 1, ttl: int = 60
) -> bytes:
    return owner + struct.pack("!HHIH", kind, class_, ttl, len(data)) + data


def reply(
    query: bytes,
    *records: bytes,
    flags: int = 0x8180,
    asked: bytes | None = None,
    id_change: int = 0,
    counts: Sequence[int] | None = None,
) -> bytes:
    asked = section(query) if asked is None else asked
    number = int.from_bytes(query[:2]) ^ id_change
    head = struct.pack("!6H", number, flags, *(counts or (1, len(records), 0, 0)))
    return head + asked + b"".join(records)


def good(query: bytes) -> bytes:
    return reply(query, record(GOOD))


def in_class(query: bytes, class_: int) -> bytes:
    return section(query)[:-2] + class_.to_bytes(2)


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


TRUNCATED = 0x8380

FORGED: dict[str, Callable[[bytes], bytes]] = {
    "under another id": lambda q: reply(q, record(), id_change=1),
    "under the id with its bytes swapped": lambda q: (
        q[1::-1] + reply(q, record())[2:] if q[0] != q[1] else reply(q, record(), id_change=1)
    ),
    "for another name": lambda q: reply(q, record(), asked=wire_name("allowed.test") + b"\0\1\0\1"),
    "for another type": lambda q: reply(q, record(), asked=section(q)[:-4] + b"\0\x10\0\1"),
    "in another class": lambda q: reply(q, record(), asked=in_class(q, 3)),
    "that is a question": lambda q: reply(q, record(), flags=0x0100),
    "of another opcode": lambda q: reply(q, record(), flags=0x8180 | 5 << 11),
    "without its question": lambda q: reply(
        q, record(owner=wire_name("x.wild.test")), asked=b"", counts=(0, 1, 0, 0)
    ),
    "with its question twice": lambda q: reply(q, section(q), record(), counts=(2, 1, 0, 0)),
    "with a name of which a pointer leads to itself": lambda q: reply(
        q, record(owner=(0xC000 | 12 + len(section(q))).to_bytes(2))
    ),
    "with a pointer ahead": lambda q: reply(q, record(owner=b"\xc0\xff")),
    "with an address of five bytes": lambda q: reply(q, record(EVIL + b"\0")),
    "with fewer records than it says": lambda q: reply(q, record(), counts=(1, 2, 0, 0)),
    "with data longer than itself": lambda q: reply(q, record())[:-1],
    "that ends in a record's head": lambda q: reply(q, record())[:-6],
    "of half a header": lambda q: reply(q)[:11],
    "of no bytes": lambda q: b"",
    "of noise": lambda q: q[:2] + random.Random(1).randbytes(600),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
async def test_a_forged_answer(
    rig: tuple[Arena, HostileServer, Inmate], forged: Callable[[bytes], bytes]
) -> None:
    """It comes first, and the true one is told all the same."""
    _, server, inmate = rig
    server.over_udp = lambda query: [forged(query), forged(query), good(query)]
    question = message(wire_name("x.wild.test"))
    assert (await over_udp(inmate.attacker, question)).kind == f"NOERROR {plan.WILDCARD4}"
    assert len(server.asked) == 1


async def test_a_forged_answer_from_another_address(rig: tuple[Arena, HostileServer, Inmate]) -> None:
    _, server, inmate = rig
    server.elsewhere = lambda query: [reply(query, record())]
    server.over_udp = lambda query: [good(query)]
    question = message(wire_name("x.wild.test"))
    assert (await over_udp(inmate.attacker, question)).kind == f"NOERROR {plan.WILDCARD4}"


def chain(query: bytes, links: int, last: bytes) -> bytes:
    """Aliases one after the other, in reverse order, and what the last one has."""
    names = [section(query)[:-4], *(wire_name(f"link{number}.far.test") for number in range(links))]
    aliases = [record(names[n + 1], owner=names[n], kind=5) for n in range(links)]
    return reply(query, record(last, owner=names[-1]), *reversed(aliases))


FAILURES: dict[str, tuple[Answers, Answers]] = {
    "silence": (lambda q: [], lambda q: []),
    "only forged answers": (lambda q: [reply(q, record(), id_change=7)] * 20, lambda q: []),
    "a loop of aliases": (lambda q: [reply(q, record(section(q)[:-4], kind=5))], lambda q: []),
    "a chain of 17 aliases": (lambda q: [chain(q, 17, GOOD)], lambda q: []),
    "SERVFAIL": (lambda q: [reply(q, flags=0x8182)], lambda q: []),
    "REFUSED with records": (lambda q: [reply(q, record(), flags=0x8185)], lambda q: []),
    "REFUSED without the question": (
        lambda q: [reply(q, asked=b"", flags=0x8185, counts=(0, 0, 0, 0))],
        lambda q: [],
    ),
    "YXDOMAIN": (lambda q: [reply(q, record(), flags=0x8186)], lambda q: []),
    "truncated, then the end": (lambda q: [reply(q, flags=TRUNCATED)], lambda q: []),
    "truncated, then half an answer": (
        lambda q: [reply(q, flags=TRUNCATED)],
        lambda q: [framed(good(q))[:-1]],
    ),
    "truncated, then noise": (lambda q: [reply(q, flags=TRUNCATED)], lambda q: [b"\xff" * 65537]),
    "truncated, then truncated": (
        lambda q: [reply(q, record(), flags=TRUNCATED)],
        lambda q: [framed(reply(q, record(), flags=TRUNCATED))],
    ),
    "truncated, then another's answer": (
        lambda q: [reply(q, flags=TRUNCATED)],
        lambda q: [framed(reply(q, record(), id_change=1)), framed(good(q))],
    ),
}


@pytest.mark.parametrize(("udp", "tcp"), FAILURES.values(), ids=FAILURES.keys())
async def test_no_usable_answer(rig: tuple[Arena, HostileServer, Inmate], udp: Answers, tcp: Answers) -> None:
    """The box is told so, soon, and not whom the gate has asked; the true answer counts the next time."""
    arena, server, inmate = rig
    server.over_udp, server.over_tcp = udp, tcp
    question = message(wire_name("x.wild.test"))
    seen = await over_udp(inmate.attacker, question)
    assert (seen.kind, seen.seconds < 3) == (LOST, True)
    assert arena.denials() == [Reason.RESOLUTION_FAILED]
    server.over_udp = lambda query: [good(query)]
    assert (await over_udp(inmate.attacker, question)).kind == f"NOERROR {plan.WILDCARD4}"


MANY = [record(bytes((51, 81, number >> 8, number & 255))) for number in range(4000)]
TEXTS = record(b"\xff" + b"t" * 255, kind=16)

BOUNDED: dict[str, tuple[Answers, str, str]] = {
    "4000 addresses": (lambda q: [framed(reply(q, *MANY))], "A", "64 records"),
    "one address 4000 times": (lambda q: [framed(reply(q, *[record(GOOD)] * 4000))], "A", plan.WILDCARD4),
    "noise behind more records than are looked at": (
        lambda q: [framed(reply(q, *MANY[:128], b"\xff" * 60000, counts=(1, 4000, 0, 0)))],
        "A",
        "64 records",
    ),
    "4000 records of another name": (
        lambda q: [framed(reply(q, *[record(owner=wire_name("a.far.test"))] * 2000, record(GOOD)))],
        "A",
        "",
    ),
    "a text of 60,000 bytes": (
        lambda q: [framed(reply(q, record((b"\xff" + b"t" * 255) * 234, kind=16)))],
        "TXT",
        "1 records",
    ),
    "texts of more bytes than a message has": (
        lambda q: [
            framed(
                reply(
                    q,
                    *[record((b"\xff" + b"t" * 255) * 3 + bytes([n]) + b"x" * n, kind=16) for n in range(70)],
                )
            )
        ],
        "TXT",
        "64 records",
    ),
    "16 aliases in reverse order": (lambda q: [framed(chain(q, 16, GOOD))], "A", plan.WILDCARD4),
}


@pytest.mark.parametrize(("tcp", "kind", "told"), BOUNDED.values(), ids=BOUNDED.keys())
async def test_an_answer_of_64_kilobytes(
    rig: tuple[Arena, HostileServer, Inmate], tcp: Answers, kind: str, told: str
) -> None:
    _, server, inmate = rig
    server.over_udp, server.over_tcp = lambda query: [reply(query, flags=TRUNCATED)], tcp
    seen = await over_tcp(inmate.attacker, message(wire_name("x.wild.test"), kind))
    answer = dns.message.from_wire(seen.data)
    if told.endswith("records"):
        assert f"{sum(map(len, answer.answer))} records" == told
    else:
        assert seen.kind == f"NOERROR {told}".strip()


@pytest.mark.parametrize(("sent", "told"), [(0, 0), (7, 7), (2**31 - 1, 300), (2**31, 0), (2**32 - 1, 0)])
async def test_the_time_that_an_answer_holds(
    rig: tuple[Arena, HostileServer, Inmate], sent: int, told: int
) -> None:
    _, server, inmate = rig
    server.over_udp = lambda query: [reply(query, record(GOOD, ttl=sent))]
    seen = await over_udp(inmate.attacker, message(wire_name("x.wild.test")))
    assert [rrset.ttl for rrset in dns.message.from_wire(seen.data).answer] == [told]


ALLOWED = wire_name("allowed.test")
TEST_ZONE = wire_name("test")

POISON: dict[str, Callable[[bytes], bytes]] = {
    "an address of another name": lambda q: reply(q, record(GOOD), record(owner=ALLOWED)),
    "the same as an authority": lambda q: reply(q, record(GOOD), record(owner=ALLOWED), counts=(1, 1, 1, 0)),
    "the same as an addition": lambda q: reply(q, record(GOOD), record(owner=ALLOWED), counts=(1, 1, 0, 1)),
    "an alias of another name": lambda q: reply(
        q, record(GOOD), record(wire_name("evil.test"), owner=ALLOWED, kind=5)
    ),
    "an alias that leads to another name": lambda q: reply(q, record(ALLOWED, kind=5), record(owner=ALLOWED)),
    "a DNAME of the zone above": lambda q: reply(
        q, record(wire_name("evil.test"), owner=TEST_ZONE, kind=39), record(GOOD)
    ),
    "name servers of the zone above": lambda q: reply(
        q,
        record(GOOD),
        record(wire_name("ns.evil.test"), owner=TEST_ZONE, kind=2),
        record(owner=wire_name("ns.evil.test")),
        counts=(1, 1, 1, 1),
    ),
    "another name in another case": lambda q: reply(q, record(GOOD), record(owner=wire_name("ALLOWED.TEST"))),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
async def test_what_one_zone_says_of_another(
    rig: tuple[Arena, HostileServer, Inmate], poison: Callable[[bytes], bytes]
) -> None:
    """A box's own zone brings it along, and neither this box nor another is told of it when it asks."""
    arena, server, inmate = rig
    other = await arena.inmate({**CUSTOM, "allowed_cidrs": []})
    server.over_udp = lambda query: [poison(query)]
    assert (await over_udp(inmate.attacker, message(wire_name("x.wild.test")))).kind.startswith("NOERROR 51.")
    server.over_udp = lambda query: [good(query)]
    for asker in (other, inmate):
        seen = await over_udp(asker.attacker, message(ALLOWED))
        assert seen.kind == f"NOERROR {plan.WILDCARD4}"
    assert [section(data)[:-4] for _, data, _ in server.asked] == [wire_name("x.wild.test"), ALLOWED]


async def test_what_another_box_has_asked_for(rig: tuple[Arena, HostileServer, Inmate]) -> None:
    """The policy comes before the cache: what is held for one box isn't told to one that may not ask."""
    arena, server, inmate = rig
    server.over_udp = lambda query: [good(query)]
    question = message(ALLOWED)
    assert (await over_udp(inmate.attacker, question)).kind == f"NOERROR {plan.WILDCARD4}"
    policies = ("deny-all", {"mode": "custom", "allowed_domains": ["*.wild.test"]})
    for policy, words in zip(policies, ("REFUSED 18 deny_all", "REFUSED 17 name_not_allowed"), strict=True):
        other = await arena.inmate(policy)
        assert (await over_udp(other.attacker, question)).kind == words
    assert len(server.asked) == 1


async def test_all_that_a_name_server_hears(rig: tuple[Arena, HostileServer, Inmate]) -> None:
    """Its id and port are the gate's own; every other byte follows from the canonical name and the type."""
    _, server, inmate = rig
    server.over_udp = lambda query: [reply(query)]
    secret = inmate.attacker.nonce.encode()
    for number in range(12):
        rest = (
            b"\0"
            + struct.pack("!HHIH", 41, 4096, 0x8000, 4 + len(secret))
            + struct.pack("!HH", 65001, 16)
            + secret
        )
        sent = message(
            wire_name(f"N{number}.Wild.TEST"), "MX", id=0xBEEF, flags=0x0170, rest=rest, counts=(1, 0, 0, 1)
        )
        assert (await over_udp(inmate.attacker, sent)).kind == "NOERROR"
    for number, (_, query, _) in enumerate(server.asked):
        assert query[2:] == (
            struct.pack("!5H", 0x0100, 1, 0, 0, 1)
            + wire_name(f"n{number}.wild.test") + struct.pack("!HH", 15, 1)
            + b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)
        )  # fmt: skip
    assert len({query[:2] for _, query, _ in server.asked} - {b"\xbe\xef"}) > 10
    assert len({peer[1] for _, _, peer in server.asked}) > 10


async def test_a_name_server_that_is_not_there(open_arena: OpenArena, lab: Lab) -> None:
    """Its host says so: the next one is asked at once."""
    arena = await open_arena(name_servers=("127.0.0.9", lab.nameserver))
    inmate = await arena.inmate()
    seen = await over_udp(inmate.attacker, message(ALLOWED))
    assert (seen.kind, seen.seconds < 1.5) == (f"NOERROR {plan.ALLOWED4}", True)


async def test_a_name_server_of_the_link(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routers announce such addresses; they hold for one interface."""
    monkeypatch.setattr("box_policy.gate.resolver._ATTEMPT_TIMEOUT", 0.05)
    names = Resolver(NameServers((f"fe80::53%{plan.GATE_INTERFACE}",)), hosts_file=None)
    await names.ask("allowed.test", A)
    assert [packet.port for packet in lab.packets("fe80::53")] == [plan.DNS_PORT]


async def test_others_have_their_turn(open_arena: OpenArena) -> None:
    """However many questions wait on a connection, between two of them the gate's loop goes round."""
    arena = await open_arena()
    inmate = await arena.inmate()
    box = inmate.attacker
    line = await box.connect(SERVER, plan.DNS_PORT)
    turns: list[int] = []

    async def watch() -> None:
        while True:
            turns.append(len(arena.records))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    count = 3000
    await line.send(framed(message(wire_name("evil.test"))) * count)
    async with asyncio.timeout(10):
        while len(arena.records) < count:
            await asyncio.sleep(0.01)
    watching.cancel()
    assert max(after - before for before, after in itertools.pairwise(turns)) == 1


async def test_a_hostile_name_in_the_record(open_arena: OpenArena) -> None:
    arena = await open_arena()
    inmate = await arena.inmate()
    name = labels(b"\x1b[2J\r\n" * 10, b"\xff" * 63, b"\\" * 63, b'"}' * 20, b"evil", b"test")
    assert (await over_udp(inmate.attacker, message(name))).kind == "REFUSED 17 name_invalid"
    (denial,) = arena.records
    assert denial.name is not None
    assert len(denial.name) <= MAX_NAME
    line = denial.as_json()
    assert line.isascii() and line.isprintable() and len(line) < 2048
