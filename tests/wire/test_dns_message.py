"""DNS questions read strictly; answers checked with a codec that is not ours."""

import struct

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from box_policy.wire.dns_message import (
    ExtendedError,
    Question,
    Rcode,
    read_question,
    write_answer,
)


def labels(*parts: bytes) -> bytes:
    return b"".join(bytes((len(part),)) + part for part in parts) + b"\0"


def message(
    name: bytes = labels(b"allowed", b"test"),
    *,
    flags: int = 0x0100,
    counts: tuple[int, int, int, int] = (1, 0, 0, 0),
    kind: int = 1,
    class_: int = 1,
    rest: bytes = b"",
) -> bytes:
    return struct.pack("!6H", 7, flags, *counts) + name + struct.pack("!HH", kind, class_) + rest


OPT = b"\0" + struct.pack("!HHIH", 41, 4096, 0, 0)


def read(data: bytes) -> Question:
    question = read_question(data)
    assert question is not None
    return question


def test_a_question_is_read() -> None:
    question = read(message(kind=28))
    assert (question.fault, question.name, question.type, question.id) == (
        Rcode.NOERROR,
        b"allowed.test",
        28,
        7,
    )


def test_the_case_of_the_name_is_echoed() -> None:
    question = read(message(labels(b"aLLoWeD", b"TeSt")))
    reply = dnslib.DNSRecord.parse(write_answer(question, Rcode.NOERROR))
    assert bytes(reply.q.qname.label[0]) == b"aLLoWeD"


def test_a_dot_inside_a_label_does_not_join_labels() -> None:
    assert read(message(labels(b"evil.test", b"allowed", b"test"))).name == b"evil\\.test.allowed.test"


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 11, message(flags=0x8100)],
    ids=["nothing", "half a header", "an answer"],
)
def test_what_is_not_a_query_is_not_answered(data: bytes) -> None:
    assert read_question(data) is None


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (message(flags=0x2900), Rcode.NOTIMP),
        (message(counts=(0, 0, 0, 0)), Rcode.FORMERR),
        (message(counts=(2, 0, 0, 0)), Rcode.FORMERR),
        (message(counts=(1, 1, 0, 0)), Rcode.FORMERR),
        (message(counts=(1, 0, 1, 0)), Rcode.FORMERR),
        (message(counts=(1, 0, 0, 2)), Rcode.FORMERR),
        (message(rest=b"x"), Rcode.FORMERR),
        (message(counts=(1, 0, 0, 1), rest=OPT[:-1]), Rcode.FORMERR),
        (message(counts=(1, 0, 0, 1), rest=OPT + b"x"), Rcode.FORMERR),
        (message(counts=(1, 0, 0, 1), rest=b"\0" + struct.pack("!HHIH", 16, 1, 0, 0)), Rcode.FORMERR),
        (message(b"\xc0\x0c"), Rcode.FORMERR),
        (message(b"\x40" + b"a" * 64 + b"\0"), Rcode.FORMERR),
        (message(labels(*[b"a" * 63] * 4)), Rcode.FORMERR),
        (message(kind=252), Rcode.REFUSED),
        (message(kind=255), Rcode.REFUSED),
        (message(class_=3), Rcode.REFUSED),
        (
            message(counts=(1, 0, 0, 1), rest=b"\0" + struct.pack("!HHIH", 41, 4096, 1 << 16, 0)),
            Rcode.BADVERS,
        ),
    ],
)
def test_what_is_not_one_plain_question_is_refused(data: bytes, fault: Rcode) -> None:
    question = read(data)
    assert question.fault is fault
    reply = dnslib.DNSRecord.parse(write_answer(question, fault))
    assert reply.header.id == 7
    assert reply.header.rcode == fault & 0xF


def test_addresses_are_answered() -> None:
    question = read(message(counts=(1, 0, 0, 1), rest=OPT))
    answer = write_answer(question, Rcode.NOERROR, records=((1, b"\x33\x51\x0a\x0a"),), ttl=30)
    reply = dnslib.DNSRecord.parse(answer)
    assert [(str(record.rdata), record.ttl) for record in reply.rr] == [("51.81.10.10", 30)]
    assert reply.header.ra == 1


def test_a_refusal_says_why_to_those_who_understand() -> None:
    error = (ExtendedError.FILTERED, "name_not_allowed")
    with_edns = read(message(counts=(1, 0, 0, 1), rest=OPT))
    option = dnslib.DNSRecord.parse(write_answer(with_edns, Rcode.REFUSED, error=error)).ar[0].rdata[0]
    assert (option.code, option.data) == (15, b"\x00\x11name_not_allowed")
    without = read(message())
    assert not dnslib.DNSRecord.parse(write_answer(without, Rcode.REFUSED, error=error)).ar


def test_an_answer_too_large_for_a_datagram_is_truncated() -> None:
    question = read(message())
    records = tuple((1, bytes((51, 81, 10, number))) for number in range(64))
    answer = write_answer(question, Rcode.NOERROR, records=records, max_size=question.udp_size)
    reply = dnslib.DNSRecord.parse(answer)
    assert len(answer) <= 512
    assert (reply.header.tc, len(reply.rr)) == (1, 0)


@given(st.binary(max_size=600))
def test_no_bytes_raise(data: bytes) -> None:
    question = read_question(data)
    if question is not None:
        write_answer(question, question.fault)


@given(st.integers(0, 40), st.binary(min_size=1, max_size=8))
def test_no_change_to_a_good_message_raises(position: int, change: bytes) -> None:
    good = message(counts=(1, 0, 0, 1), rest=OPT)
    question = read_question(good[:position] + change + good[position + len(change) :])
    assert question is None or question.fault in Rcode
