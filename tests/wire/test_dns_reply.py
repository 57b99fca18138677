"""Queries written and replies read, both held against a codec that is not ours."""

import struct

import dns.exception
import dns.message
import dns.name
import dns.rdata
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_policy.wire.dns_reply import MAX_RECORDS, RECORD_FORMATS, Query, Reply, read_reply, write_query

TEXTS = {
    "A": ["51.81.10.10", "51.81.10.11"],
    "AAAA": ["2a0f:5100::10"],
    "NS": ["ns.far.test.", "ns2.x.test."],
    "CNAME": ["far.x.test."],
    "SOA": ["ns.x.test. hostmaster.x.test. 1 2 3 4 5"],
    "PTR": ["host.x.test."],
    "MX": ["10 mail.x.test.", "20 mail.far.test."],
    "TXT": ['"one" "two"', '""', f'"{"t" * 255}"'],
    "SRV": ["1 2 443 host.x.test."],
    "NAPTR": ['1 2 "S" "SIP+D2U" "" _sip._udp.x.test.', '1 2 "" "" "!^.*$!sip:x@x.test!" .'],
    "CAA": ['0 issue "ca.test"', '128 iodef "mailto:x@x.test"', '0 issue ""'],
}


def query(kind: str = "A", name: str = "a.x.test") -> Query:
    return write_query(0x1234, name, int(dns.rdatatype.from_text(kind)))


def reply_to(asked: Query, *rrsets: dns.rrset.RRset, rcode: int = 0) -> bytes:
    message = dns.message.make_response(dns.message.from_wire(asked.message))
    message.answer += list(rrsets)
    message.set_rcode(dns.rcode.Rcode(rcode))
    return message.to_wire(max_size=65535)


def rrset(name: str, kind: str, *texts: str, ttl: int = 60) -> dns.rrset.RRset:
    return dns.rrset.from_text(name, ttl, "IN", kind, *texts)


@pytest.mark.parametrize("kind", TEXTS)
def test_a_query_is_one_plain_question(kind: str) -> None:
    asked = dns.message.from_wire(query(kind, "_x.a-b.x.test").message)
    assert asked.id == 0x1234
    assert [question.to_text() for question in asked.question] == [f"_x.a-b.x.test. IN {kind}"]
    assert (asked.edns, asked.payload, asked.options) == (0, 1232, ())
    assert asked.flags == dns.flags.RD


@pytest.mark.parametrize("name", ["", "a..b", ".a", "a.", "x" * 64 + ".test"])
def test_no_query_for_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="no host name"):
        write_query(1, name, 1)


@pytest.mark.parametrize("kind", [0, 10, 41, 64, 65, 255, 65280])
def test_no_query_for_other_types(kind: int) -> None:
    with pytest.raises(ValueError, match="is not asked for"):
        write_query(1, "a.test", kind)


@pytest.mark.parametrize("kind", TEXTS)
def test_every_type_is_read(kind: str) -> None:
    """With names in full: those in the reply are compressed."""
    found = rrset("A.x.test.", kind, *TEXTS[kind])
    reply = read_reply(reply_to(query(kind), found), query(kind))
    expected = {(int(found.rdtype), rdata.to_digestable()) for rdata in found}
    assert reply is not None
    assert (reply.rcode, set(reply.records), reply.ttl) == (0, expected, 60)


def test_every_type_that_is_asked_for_has_been_tried() -> None:
    assert {int(dns.rdatatype.from_text(kind)) for kind in TEXTS} == set(RECORD_FORMATS)


def test_a_chain_of_aliases_holds_as_long_as_its_weakest_link() -> None:
    links = (rrset("a.x.test.", "CNAME", "b.test.", ttl=50), rrset("B.test.", "A", "51.81.10.10", ttl=70))
    for answer in (links, links[::-1]):
        assert read_reply(reply_to(query(), *answer), query()) == Reply(
            0, False, ((1, b"\x33\x51\x0a\x0a"),), 50
        )


def test_an_alias_that_is_asked_for_is_not_followed() -> None:
    links = (rrset("a.x.test.", "CNAME", "b.test."), rrset("b.test.", "CNAME", "c.test."))
    reply = read_reply(reply_to(query("CNAME"), *links), query("CNAME"))
    assert reply is not None
    assert reply.records == ((5, dns.name.from_text("b.test").to_wire()),)


def test_absence_holds_as_long_as_the_zone_says() -> None:
    message = dns.message.from_wire(reply_to(query(), rcode=3))
    message.authority.append(rrset("x.test.", "SOA", "ns.x.test. h.x.test. 1 2 3 4 40", ttl=90))
    assert read_reply(message.to_wire(), query()) == Reply(3, ttl=40)
    assert read_reply(reply_to(query()), query()) == Reply(0)


def test_a_name_that_is_said_not_to_exist_has_no_records() -> None:
    assert read_reply(reply_to(query(), rrset("a.x.test.", "A", "51.81.10.10"), rcode=3), query()) == Reply(3)


def test_records_of_another_class_are_passed_over() -> None:
    wire = reply_to(query())[:12]
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 3, 60, 4) + b"\1\2\3\4"
    wire = wire[:6] + b"\0\1" + wire[8:10] + b"\0\0" + query().section + record
    assert read_reply(wire, query()) == Reply(0)


def test_so_many_records_and_no_more() -> None:
    found = rrset("a.x.test.", "A", *(f"51.81.10.{number}" for number in range(100)))
    reply = read_reply(reply_to(query(), found), query())
    assert reply is not None
    assert len(reply.records) == MAX_RECORDS


PARTS = st.lists(st.sampled_from(["a", "b", "x", "test", "far", "_z", "é", "n" * 63]), min_size=1, max_size=4)
NAMES = PARTS.map(lambda parts: ".".join(parts).replace("é", "e") + ".")


@given(
    kind=st.sampled_from(list(TEXTS)),
    owners=st.lists(st.tuples(NAMES, NAMES, st.integers(0, 2**31 - 1)), max_size=6),
    last=NAMES,
)
def test_what_is_found_is_what_dnspython_finds(
    kind: str, owners: list[tuple[str, str, int]], last: str
) -> None:
    asked = query(kind)
    answer = [rrset(owner, "CNAME", target, ttl=ttl) for owner, target, ttl in owners]
    answer += [rrset("a.x.test.", "CNAME", last), rrset(last, kind, *TEXTS[kind], ttl=9)]
    try:
        # What one owner has under the same type is one set, as on the wire.
        message = dns.message.from_wire(reply_to(asked, *answer))
        assert isinstance(message, dns.message.QueryMessage)
        chain = message.resolve_chaining()
    except dns.exception.DNSException:
        return
    reply = read_reply(message.to_wire(), asked)
    expected = {(int(rdata.rdtype), rdata.to_digestable()) for rdata in chain.answer or ()}
    assert reply is not None
    if (
        len({owner for owner, *_ in owners}) == len(owners) and kind != "CNAME"
    ):  # else the first of two aliases counts
        assert set(reply.records) == expected
        assert reply.ttl == chain.minimum_ttl or not expected


GOOD = reply_to(query("MX"), rrset("a.x.test.", "CNAME", "b.x.test."), rrset("b.x.test.", "MX", *TEXTS["MX"]))


@given(st.integers(0, len(GOOD)), st.binary(max_size=6), st.integers(0, 6))
def test_no_change_to_a_good_reply_raises(position: int, change: bytes, gone: int) -> None:
    read_reply(GOOD[:position] + change + GOOD[position + gone :], query("MX"))


@given(st.binary(max_size=300), st.sampled_from(list(TEXTS)))
def test_no_bytes_raise(data: bytes, kind: str) -> None:
    asked = query(kind)
    read_reply(data, asked)
    read_reply(asked.message[:2] + b"\x81\x80\0\1\0\2\0\1\0\0" + asked.section + data, asked)
