"""The DNS reply: of what a hostile name server sends, the gate takes only what others read as the answer."""

from typing import Final

import dns.exception
import dns.message
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from box_policy.wire.dns_reply import MAX_RECORDS, RECORD_FORMATS, Query, Reply, read_reply, write_query
from tests.fuzz.target import Target

_NAME: Final = "allowed.test"
_HEADER: Final = 12
_QUERIES: Final = {write_query(0, _NAME, kind).section: kind for kind in RECORD_FORMATS}


def one(data: bytes) -> None:
    """Read it as the reply to the question that it repeats, or to one for an address."""
    repeated = data[_HEADER : _HEADER + len(next(iter(_QUERIES)))]
    kind = _QUERIES.get(repeated[:-4].lower() + repeated[-4:], dns.rdatatype.A)
    query = write_query(int.from_bytes(data[:2]), _NAME, kind)
    reply = read_reply(data, query)
    if reply is None:
        return
    assert len(reply.records) <= MAX_RECORDS
    assert reply.ttl is None or 0 <= reply.ttl < 1 << 31
    if reply.records:
        assert not reply.truncated and reply.rcode == dns.rcode.NOERROR
        check_records(data, query, reply)


def check_records(data: bytes, query: Query, reply: Reply) -> None:
    """They are of the asked type, well-formed, and at the end of a chain that starts at the asked name."""
    for kind, content in reply.records:
        assert kind == query.type
        if kind != dns.rdatatype.CAA:  # dnspython has an opinion on its tags as well
            record_type = dns.rdatatype.RdataType.make(kind)
            read = dns.rdata.from_wire(dns.rdataclass.IN, record_type, content, 0, len(content))
            assert (read.to_wire() or b"").lower() == content.lower()
    try:
        message = dns.message.from_wire(data, ignore_trailing=True)
        assert isinstance(message, dns.message.QueryMessage)
        chain = message.resolve_chaining()
    except dns.exception.DNSException:
        return  # it says something else as well, that isn't looked at here
    if _is_forked(data):
        return
    others = {(rdata.to_wire() or b"").lower() for rdata in chain.answer or ()}
    told = {content.lower() for _, content in reply.records}
    if dns.rdatatype.is_singleton(dns.rdatatype.RdataType.make(query.type)):
        assert others and others <= told, "another answer"  # of several, dnspython keeps the last
    else:
        assert told <= others and (told == others or len(told) == MAX_RECORDS), "another answer"


def _is_forked(data: bytes) -> bool:
    """One name has several CNAMEs. The gate follows the first of them, dnspython the last."""
    message = dns.message.from_wire(data, ignore_trailing=True, one_rr_per_rrset=True)
    aliases = [rrset.name for rrset in message.answer if rrset.rdtype == dns.rdatatype.CNAME]
    return len(aliases) > len(set(aliases))


def answer(
    kind: str, *answers: str, authority: tuple[str, ...] = (), rcode: int = dns.rcode.NOERROR
) -> bytes:
    """A reply with these records, each an owner, a TTL, a type and the data in text."""
    query = dns.message.make_query(_NAME, kind, id=0x1234)
    message = dns.message.make_response(query)
    message.set_rcode(dns.rcode.Rcode(rcode))
    for section, lines in ((message.answer, answers), (message.authority, authority)):
        for line in lines:
            owner, ttl, record, content = line.split(" ", 3)
            section.append(dns.rrset.from_text(owner, int(ttl), "IN", record, content))
    return message.to_wire()


_SOA: Final = "test. 300 SOA ns.test. admin.test. 1 2 3 4 5"
SEEDS: Final = (
    answer("A", "allowed.test. 60 A 51.81.10.10"),
    answer("A", "allowed.test. 60 CNAME b.test.", "b.test. 30 CNAME c.test.", "c.test. 10 A 51.81.10.10"),
    answer("A", "allowed.test. 60 CNAME b.test.", "b.test. 30 CNAME allowed.test."),
    answer("A", "evil.test. 60 A 51.81.10.10"),
    answer("AAAA", "allowed.test. 60 AAAA 2a0f:5100::1", authority=("test. 9 NS ns.test.",)),
    answer("A", authority=(_SOA,)),
    answer("A", authority=(_SOA,), rcode=dns.rcode.NXDOMAIN),
    answer("A", rcode=dns.rcode.REFUSED),
    answer("MX", "allowed.test. 60 MX 10 mail.allowed.test."),
    answer("SRV", "allowed.test. 60 SRV 1 2 3 a.allowed.test."),
    answer("TXT", 'allowed.test. 60 TXT "a" "b"'),
    answer("CAA", 'allowed.test. 60 CAA 0 issue "ca.test"'),
    answer("NAPTR", 'allowed.test. 60 NAPTR 1 2 "u" "x" "!a!b!" .'),
    answer("SOA", "allowed.test. 60 SOA ns.test. admin.test. 1 2 3 4 5"),
)
DICTIONARY: Final = (
    b"\xc0\x0c",
    b"\7allowed\4test\0",
    b"\0\1\0\1",
    b"\0\5\0\1",
    b"\0\0\0\x3c\0\4",
    b"\xc0",
    b"\xff\xff",
)

TARGET: Final = Target(one, SEEDS, DICTIONARY, max_length=1024)
