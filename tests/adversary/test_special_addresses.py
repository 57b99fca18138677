"""No address that isn't the public Internet's is ever dialled: not as asked for, nor as what a name leads to.

Every origin of the test network is at every address, these among them: what is dialled in spite of this
lands, and is seen. The gate's own host is watched as well.
"""

from collections.abc import Callable, Iterable
from ipaddress import IPv6Address, ip_address, ip_network

import pytest

from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.asking import asks, message, over_udp, question, wire_name
from tests.adversary.attack import CUSTOM, Act, Attack
from tests.adversary.attacker import Attacker, Seen
from tests.adversary.conftest import OpenArena
from tests.adversary.in_the_box import runs, together
from tests.adversary.wire import allowed_tls, hello, http, request, sends, tls
from tests.lab import Lab, plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "Special addresses"

# The IANA special-purpose registries; then multicast, what was never given out, and what clouds use.
REGISTERED = """
0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
192.0.0.0/29 192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24
192.88.99.0/24 192.88.99.2/32 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4
255.255.255.255/32
::1/128 ::/128 ::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32
2001:1::1/128 2001:1::2/128 2001:1::3/128 2001:2::/48 2001:10::/28 2001:20::/28 2001:30::/28 2001:db8::/32
2002::/16 3fff::/20 5f00::/16 fc00::/7 fe80::/10
224.0.0.0/4 ff00::/8 ::/96 ::ffff:0:0:0/96 fec0::/10 ::/3 4000::/2 8000::/1
100.100.100.200 168.63.129.16 169.254.0.23 169.254.42.42 169.254.169.254 169.254.170.2 169.254.170.23
192.0.0.192 fd00:42::42 fd00:100::100:200 fd00:a9fe:a9fe::1 fd00:c1::a9fe:a9fe fd00:ec2::23 fd00:ec2::254
fd20:ce::254 fe80::a9fe:a9fe
"""
RANGES = REGISTERED.split()

# An IPv4 address in the clothes of an IPv6 one.
EMBEDDED = {
    "mapped": "::ffff:169.254.169.254",
    "compatible": "::169.254.169.254",
    "translated": "::ffff:0:169.254.169.254",
    "NAT64": "64:ff9b::a9fe:a9fe",
    "NAT64 of a site": "64:ff9b:1::a9fe:a9fe",
    "6to4": "2002:a9fe:a9fe::66",
    "Teredo's server": "2001:0:a9fe:a9fe::66",
    "Teredo's client": "2001:0:3351:4242::5601:5601",
    "ISATAP": "2a0f:5100::5efe:a9fe:a9fe",
    "mapped loopback": "::ffff:127.0.0.1",
    "mapped public": f"::ffff:{plan.EVIL4}",
    "NAT64 of a public address": "64:ff9b::3351:4242",
}

OWN = {"the gate's own address": plan.GATE4, "the gate's own IPv6 address": plan.GATE6}
BOXES = {"a box's address": "10.0.2.15", "a box's IPv6 address": "fd00:2::15"}

OWN_OF_A_BOX = {ip_address(address) for address in ("0.0.0.0", "::", *BOXES.values())}
BROADCAST = {ip_address("127.255.255.255"), ip_address("255.255.255.255")}

ANSWER_WORDS = "NOERROR 15 resolved_special, alert 49, http 403"


def ends(range_: str) -> list[str]:
    """The first and the last address."""
    network = ip_network(range_)
    return list(dict.fromkeys((str(network[0]), str(network[-1]))))


def connected(address: str) -> str:
    """What becomes of a connection in the box: most arrive at the gate, and are reset there."""
    number = ip_address(address)
    if isinstance(number, IPv6Address):
        number = number.ipv4_mapped or number
    if number in BROADCAST or number.is_multicast:
        return "ENETUNREACH"
    if number in OWN_OF_A_BOX or number.is_loopback:
        return "ECONNREFUSED"
    return "EINVAL" if number.version == 6 and number.is_link_local else "reset"  # it lacks a zone


def spelt_out(address: str) -> str:
    """Without a dot in IPv6: the lab's codec does not read that."""
    number = ip_address(address)
    if number.version == 4:
        return address
    return ":".join(f"{int(number) >> shift & 0xFFFF:x}" for shift in range(112, -1, -16))


def slug(address: str) -> str:
    return address.replace(".", "-").replace(":", "x")


def opaque(box: Attacker) -> bytes:
    """No protocol that names a host."""
    return b"\0\0\0\0" + box.nonce.encode()


def asked_for(name: str, kind: str = "A") -> Act:
    async def act(box: Attacker) -> Seen:
        return await over_udp(box, message(wire_name(name), kind))

    return act


def greeted(address: str) -> Act:
    """Connect to the port where the server speaks first, and answer it."""

    async def act(box: Attacker) -> Seen:
        line = await box.connect(address, plan.BANNER_PORT)
        seen = await line.read(size=4)
        await line.send(opaque(box))
        await line.end()
        return seen

    return act


def by_name(name: str, kind: str) -> list[Act]:
    """By TLS and HTTP to some public address, and by a question."""
    return [tls(plan.EVIL4, name.encode()), http(plan.EVIL4, name.encode()), asked_for(name, kind)]


def as_answers(what: str, addresses: Iterable[str], policy: object = CUSTOM) -> Attack:
    """Names that are allowed lead to these addresses."""
    zone, probes = {}, []
    for address in addresses:
        kind = "AAAA" if ":" in address else "A"
        name = f"to-{slug(address)}.rebind.test"
        zone[name] = {kind: [spelt_out(address)]}
        probes += by_name(name, kind)
    return Attack(
        name=f"a name of {what}",
        act=together(*probes),
        policy=policy,
        zone=zone,
        sees=ANSWER_WORDS,
        reasons=(Reason.RESOLVED_SPECIAL,) * len(probes),
    )


def directly(what: str, addresses: Iterable[str], policy: object = CUSTOM) -> Attack:
    """Connections to these addresses, under an allowed name, and under none."""
    addresses = list(addresses)
    probes = [
        probe
        for address in addresses
        for probe in (
            tls(address, b"allowed.test"),
            http(address, b"allowed.test"),
            sends(address, 22, opaque),
        )
    ]
    words = [connected(address) for address in addresses]
    return Attack(
        name=f"a connection to {what}",
        act=together(*probes),
        policy=policy,
        sees=", ".join(sorted(set(words))),
        reasons=(Reason.SPECIAL_ADDRESS,) * 3 * words.count("reset"),
    )


PLACES = {range_: ends(range_) for range_ in RANGES}
PLACES |= {f"{address} ({what})": [address] for what, address in (EMBEDDED | OWN | BOXES).items()}
MAPPED_PUBLIC = f"::ffff:{plan.EVIL4}"

# What a policy might seem to open, and none can.
WANTED = [plan.METADATA4, plan.PRIVATE4, plan.GATE4]
WANTED += ["127.0.0.9", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"]
POLICIES = {
    "everything is allowed": "allow-all",
    "every address is allowed": {**CUSTOM, "allowed_cidrs": ["0.0.0.0/0", "::/0"]},
    "they are allowed": {**CUSTOM, "allowed_cidrs": WANTED},
    "their ranges are allowed": {
        **CUSTOM,
        "allowed_cidrs": ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "fc00::/7"],
    },
    "another address is denied": {"mode": "custom", "denied_cidrs": [plan.CIDR]},
}

SCOPED = """
sock = opened(socket.AF_INET6)
try:
    sock.connect(("fe80::1", 443, 0, socket.if_nametoindex("lo")))
    result = end_of(sock, HELLO)
except ConnectionResetError:
    result = "the end"
"""

ATTACKS = [
    *(as_answers(what, addresses) for what, addresses in PLACES.items()),
    *(directly(what, addresses) for what, addresses in PLACES.items() if addresses != [MAPPED_PUBLIC]),
    *(
        directly(f"places that clouds trust, while {what}", WANTED, policy)
        for what, policy in POLICIES.items()
    ),
    Attack(
        name="a connection to fe80::1 in the zone of lo",
        act=runs(SCOPED, HELLO=lambda box: hello(box, b"allowed.test")),
        sees="the end",
        reasons=(Reason.SPECIAL_ADDRESS,),
    ),
    Attack(
        name="no name to a public address as IPv4 mapped into IPv6",
        act=sends(MAPPED_PUBLIC, 443, opaque),
        sees="reset",
        reasons=(Reason.PROTOCOL_UNKNOWN,),
    ),
    Attack(
        name="an allowed address as IPv4 mapped into IPv6",
        act=greeted(f"::ffff:{plan.CIDR4}"),
        must_arrive=True,
        sees="data",
        reasons=(),
    ),
    # An allowed zone that answers as the attacker likes, each time as suits best.
    Attack(
        name="an allowed name with a public and a private address at once, over TLS",
        act=allowed_tls(plan.EVIL4, b"both.rebind.test"),
        zone={"both.rebind.test": {"A": [plan.METADATA4, plan.ALLOWED4, plan.PRIVATE4], "AAAA": ["::1"]}},
        must_arrive=True,
        reasons=(),
    ),
    Attack(
        name="an allowed name with a public and a private address at once, over HTTP",
        act=http(plan.EVIL4, b"both.rebind.test"),
        zone={"both.rebind.test": {"A": [plan.METADATA4, plan.ALLOWED4, plan.PRIVATE4], "AAAA": ["::1"]}},
        must_arrive=True,
        sees="http 200",
        reasons=(),
    ),
    Attack(
        name="a question for a name with a public and a private address at once",
        act=asks(question("both.rebind.test")),
        zone={"both.rebind.test": {"A": [plan.METADATA4, plan.ALLOWED4, plan.PRIVATE4]}},
        sees=f"NOERROR {plan.ALLOWED4}",
        reasons=(),
    ),
    Attack(
        name="a public address among 63 private ones",
        act=asks(question("crowd.rebind.test")),
        zone={"crowd.rebind.test": {"A": [*(f"10.66.0.{number}" for number in range(63)), plan.ALLOWED4]}},
        sees=f"NOERROR {plan.ALLOWED4}",
        reasons=(),
    ),
    *(
        Attack(
            name=f"an alias of {what}",
            act=together(*by_name("alias.rebind.test", "A")),
            zone={
                "alias.rebind.test": {"CNAME": "mid.far.test"},
                "mid.far.test": {"CNAME": "in.far.test"},
                "in.far.test": {"A": [address]},
            },
            sees=ANSWER_WORDS,
            reasons=(Reason.RESOLVED_SPECIAL,) * 3,
        )
        for what, address in (("a private address", plan.PRIVATE4), ("the gate's own address", plan.GATE4))
    ),
    Attack(
        name="the name of the gate's own host",
        act=together(*by_name("localhost", "A")),
        policy={"mode": "custom", "allowed_domains": ["localhost"]},
        zone={"localhost": {"A": ["127.0.0.1"]}},
        sees=ANSWER_WORDS,
        reasons=(Reason.RESOLVED_SPECIAL,) * 3,
    ),
    *(
        Attack(
            name=f"an address as a name: {name}",
            act=together(tls(plan.EVIL4, name.encode()), asked_for(name)),
            sees="REFUSED 17 name_invalid, alert 49",
            reasons=(Reason.NAME_INVALID,) * 2,
        )
        for name in (
            "2130706433",
            "0x7f.1",
            "0177.0.0.1",
            "127.1",
            "051.081.066.066",
            plan.EVIL4,
            "0xa9fea9fe",
        )
    ),
    # Nobody says where the name leads: that is no reason to believe the box.
    *(
        Attack(
            name=f"an allowed name whose look-up ends in {what}",
            act=together(*by_name("lost.rebind.test", "A")),
            zone={"lost.rebind.test": entry},
            sees=f"{told}, alert 80, http 502",
            reasons=(Reason.RESOLUTION_FAILED,) * denials,
        )
        for what, entry, told, denials in (
            ("SERVFAIL", {"rcode": "SERVFAIL"}, "SERVFAIL 23 resolution_failed", 3),
            ("REFUSED", {"rcode": "REFUSED"}, "SERVFAIL 23 resolution_failed", 3),
            ("silence", {"silent": True}, "SERVFAIL 23 resolution_failed", 3),
            ("NXDOMAIN", {"rcode": "NXDOMAIN"}, "NXDOMAIN", 2),
            ("no address", {}, "NOERROR", 2),
        )
    ),
    # The gate's listeners, which the box can see, are no way to make a destination up.
    *(
        Attack(
            name=f"{what} to the gate's listener {address}",
            act=sends(address, 61001, data),
            sees="reset",
            reasons=(Reason.SPECIAL_ADDRESS,),
        )
        for address in ("127.0.0.1", "::1")
        for what, data in (
            ("TLS", lambda box: hello(box, b"allowed.test")),
            ("HTTP", lambda box: request(box, b"allowed.test")),
            ("opaque bytes", opaque),
        )
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)


# What changes in between, and what the operator opens.


@pytest.fixture
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that holds for no time is asked for again at once."""
    monkeypatch.setattr("box_policy.gate.resolver._MIN_TTL", 0)


@pytest.mark.usefixtures("nothing_is_kept")
@pytest.mark.parametrize("probe", [tls, http], ids=["TLS", "HTTP"])
async def test_a_name_that_changes_sides(arena: Arena, probe: Callable[..., Act]) -> None:
    """Each dial is judged by what was resolved for it, whatever the box was told before."""
    inmate = await arena.inmate()
    arena.begin(inmate)
    box, name = inmate.attacker, "flip.rebind.test"
    sequence = [[plan.ALLOWED4], [plan.METADATA4], [plan.GATE4], ["::1", "10.66.0.1"], [plan.ALLOWED4]]
    arena.lab.dns.set(name, sequence=sequence, ttl=0)
    assert (await over_udp(box, message(wire_name(name)))).kind == f"NOERROR {plan.ALLOWED4}"
    for _ in range(3):
        assert str(await probe(plan.ALLOWED4, name.encode())(box)) in ("alert 49", "http 403")
    assert arena.denials() == [Reason.RESOLVED_SPECIAL] * 3
    assert {packet.address for packet in arena.lab.packets()} == {plan.NAMESERVER4}
    allowed = allowed_tls if probe is tls else http
    assert str(await allowed(plan.EVIL4, name.encode())(box)) in ("data", "http 200")
    await arena.rest(inmate)
    assert {packet.address for packet in arena.lab.packets()} == {plan.NAMESERVER4, plan.ALLOWED4}


@pytest.mark.usefixtures("nothing_is_kept")
async def test_a_name_that_changes_sides_between_two_requests(arena: Arena) -> None:
    inmate = await arena.inmate()
    arena.begin(inmate)
    arena.lab.dns.set("flip.rebind.test", sequence=[[plan.ALLOWED4], [plan.METADATA4]], ttl=0)
    line = await inmate.attacker.connect(plan.EVIL4, 80)
    await line.send(request(inmate.attacker, b"flip.rebind.test"))
    assert str(await line.read(until=b"\r\n\r\n")) == "http 200"
    await line.send(request(inmate.attacker, b"flip.rebind.test"))
    assert b"HTTP/1.1 403" in (await line.see()).data
    await line.close()
    await arena.rest(inmate)
    assert arena.denials() == [Reason.RESOLVED_SPECIAL]
    assert {packet.address for packet in arena.lab.packets(port=80)} == {plan.ALLOWED4}


@pytest.mark.usefixtures("nothing_is_kept")
async def test_an_address_that_the_name_had_before(arena: Arena) -> None:
    """The box's address may be out of date: the gate's own is what counts."""
    inmate = await arena.inmate()
    arena.begin(inmate)
    box = inmate.attacker
    arena.lab.dns.set("moved.rebind.test", sequence=[[plan.EVIL4], [plan.ALLOWED4]], ttl=0)
    assert (await over_udp(box, message(wire_name("moved.rebind.test")))).kind == f"NOERROR {plan.EVIL4}"
    assert str(await http(plan.EVIL4, b"moved.rebind.test")(box)) == "http 200"
    await arena.rest(inmate)
    assert {packet.address for packet in arena.lab.packets(port=80)} == {plan.ALLOWED4}


async def test_a_private_network_that_the_operator_opens(open_arena: OpenArena, lab: Lab) -> None:
    """It is open to those whose policy allows it; the metadata services in its midst are not."""
    ranges = ("10.0.0.0/8", "169.254.0.0/16", "fd00::/8", "100.64.0.0/10", "127.0.0.0/8", "::/0", "0.0.0.0/0")
    arena = await open_arena(private_ranges=ranges)
    free, bound = await arena.inmate("allow-all"), await arena.inmate()
    assert str(await http(plan.PRIVATE4, b"private.test")(free.attacker)) == "http 200"
    assert str(await http(plan.PRIVATE4, b"private.test")(bound.attacker)) == "http 403"
    arena.records.clear()
    lab.reset()
    services = [place for place in RANGES if "/" not in place and not place.startswith("fe80")]
    for place in (*services, plan.GATE4, plan.GATE6):
        assert str(await sends(place, 80, opaque)(free.attacker)) == "reset"
    assert arena.denials() == [Reason.SPECIAL_ADDRESS] * (len(services) + 2)
    assert (lab.packets(), lab.loopback_packets(protocol="tcp")) == ([], [])
