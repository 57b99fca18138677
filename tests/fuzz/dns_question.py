"""The DNS question: what the gate judges is the one question that others read in the same message."""

import struct
from random import Random
from typing import Final

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rdataclass
import dns.rdatatype
import dnslib

from box_policy.policy.domains import name_from_wire
from box_policy.wire.dns_message import (
    UDP_SIZE,
    ExtendedError,
    Question,
    Rcode,
    read_question,
    write_answer,
)
from tests.fuzz.target import Mutate, Target

_A: Final = 1
_TXT: Final = 16
_AAAA: Final = 28
_ONE_QUESTION: Final = bytes.fromhex("0001000000000000")


def one(data: bytes) -> None:
    """Read a message, hold what was read against two other readers, and answer it in every way."""
    question = read_question(data)
    if question is None:
        return
    assert data[:2] == question.id.to_bytes(2)
    if question.fault is Rcode.NOERROR:
        check_question(data, question)
    check_answers(data, question)


def check_question(data: bytes, question: Question) -> None:
    """Two other readers read the same name, type and class, and no other question."""
    try:
        message = dns.message.from_wire(data)
    except dns.exception.FormError:
        # Options are dropped unread here; what is wrong within one is no part of the question.
        assert question.edns
        message = dns.message.from_wire(data, question_only=True)
    (asked,) = message.question
    assert (asked.rdtype, asked.rdclass) == (question.type, dns.rdataclass.IN)
    labels = list(asked.name.labels)
    assert labels.pop() == b""
    escaped = [label.replace(b"\\", b"\\\\").replace(b".", b"\\.") for label in labels]
    assert question.name == b".".join(escaped)
    judged = name_from_wire(question.name)
    if judged is not None:
        assert judged == asked.name.to_text(omit_final_dot=True).lower(), "judged as another name"

    if _is_utf8(labels):  # dnslib reads no other labels
        (other,) = dnslib.DNSRecord.parse(data[:4] + _ONE_QUESTION + question.section).questions
        assert (other.qtype, other.qclass) == (question.type, dns.rdataclass.IN)
        assert list(other.qname.label) == labels


def _is_utf8(labels: list[bytes]) -> bool:
    try:
        return all(label.decode() is not None for label in labels)
    except UnicodeDecodeError:
        return False


def check_answers(data: bytes, question: Question) -> None:
    """Every kind of answer is a sound message that fits where it must."""
    random = Random(data)
    records = random.choice(
        (
            (),
            ((_A, random.randbytes(4)),) * random.choice((1, 1, 1, 1, 3, 3, 3, 90)),
            ((_AAAA, random.randbytes(16)),),
            ((_TXT, b"\x05hello"), (_A, random.randbytes(4))),
        )
    )
    error = random.choice(
        (None, (random.choice(list(ExtendedError)), "reason " * random.choice((0, 1, 100))))
    )
    rcode = random.choice((question.fault, *Rcode))
    if not question.section:
        records = ()  # there is no name for them
    limit = random.choice((None, question.udp_size))
    answer = write_answer(
        question, rcode, records=records, ttl=random.getrandbits(31), error=error, max_size=limit
    )
    if limit is not None:
        assert len(answer) <= limit <= UDP_SIZE
    message = dns.message.from_wire(answer)
    assert message.id == question.id
    assert message.flags & dns.flags.QR
    assert [asked.rdtype for asked in message.question] == ([question.type] if question.section else [])
    assert answer[12 : 12 + len(question.section)] == question.section
    assert (message.edns >= 0) == question.edns
    if question.edns or rcode < 16:
        assert message.rcode() == rcode
    told = sum(len(rrset) for rrset in message.answer)
    if message.flags & dns.flags.TC:
        assert told == 0
    else:
        assert told == len(set(records))
    codes = [int(option.code) for option in message.options if isinstance(option, dns.edns.EDEOption)]
    assert codes == ([error[0]] if error and question.edns else [])


def message(
    *labels: bytes,
    kind: int = _A,
    class_: int = 1,
    flags: int = 0x0100,
    counts: tuple[int, int, int, int] = (1, 0, 0, 0),
    behind: bytes = b"",
) -> bytes:
    """A message that asks for a name."""
    name = b"".join(bytes([len(label) & 0xFF]) + label for label in labels) + b"\0"
    return struct.pack("!HHHHHH", 0x1234, flags, *counts) + name + struct.pack("!HH", kind, class_) + behind


def mutate(data: bytes, random: Random, change: Mutate) -> bytes:
    """Change one part of a question, and leave the counts and lengths right."""
    labels, position = [], 12
    while position < len(data) and data[position]:
        labels.append(data[position + 1 : position + 1 + data[position]])
        position += 1 + data[position]
    if position + 5 > len(data) or random.random() < 0.2:
        return change(data)
    kind, class_ = struct.unpack_from("!HH", data, position + 1)
    header, behind = data[:12], data[position + 5 :]
    at = random.randrange(len(labels) + 1)
    match random.randrange(7):
        case 0:
            labels[at:at] = [random.choice((b"a", b"allowed", b"xn--a", b".", b"\\", b"a" * 63, b"a" * 64))]
        case 1:
            labels[at : at + 1] = [change(label)[:64] for label in labels[at : at + 1]]
        case 2:
            del labels[at : at + 1]
        case 3:
            kind, class_ = (
                random.choice((1, 28, 65, 255, random.getrandbits(16))),
                random.choice((1, 1, 1, 3, 255)),
            )
        case 4:
            header = change(header)[:12]
        case 5:
            option = change(b"\0\x0a\0\4abcd")
            header, behind = header[:10] + b"\0\1", OPT[:-2] + len(option).to_bytes(2) + option
        case 6:
            behind = change(behind)
    name = b"".join(bytes([len(label)]) + label for label in labels)
    return header + name + b"\0" + struct.pack("!HH", kind, class_) + behind


OPT: Final = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
SEEDS: Final = (
    message(b"allowed", b"test"),
    message(b"ALLOWED", b"test", kind=_AAAA, counts=(1, 0, 0, 1), behind=OPT),
    message(b"allowed", b"test", counts=(1, 0, 0, 1), behind=OPT[:-1] + b"\x0c\0\x0a\0\x08abcdefgh"),
    message(b"allowed", b"test", counts=(1, 0, 0, 1), behind=OPT[:6] + b"\1\0\0\0\0"),
    message(b"allowed.test", b"evil", b"test"),
    message(b"back\\slash", b"nul\0", b"test"),
    message(),
    message(*[b"a" * 63] * 3, b"b" * 61),
    message(*[b"a" * 63] * 4),
    message(b"allowed", b"test", kind=255),
    message(b"allowed", b"test", class_=3),
    message(b"allowed", b"test", flags=0x8000),
    message(b"allowed", b"test", flags=0x2000),
    message(b"allowed", b"test", counts=(2, 0, 0, 0), behind=message(b"evil", b"test")[12:]),
    message(b"allowed", b"test", counts=(1, 1, 0, 0)),
    message(b"allowed", b"test", behind=b"\0"),
    message()[:12] + b"\xc0\x0c\0\1\0\1",
)
DICTIONARY: Final = (
    b"\7allowed",
    b"\4test\0",
    b"\4evil",
    b"\xc0\x0c",
    OPT,
    b"\0\1\0\1",
    b"\0\0\0\0\0\0",
    b"\0\0\0\1",
)

TARGET: Final = Target(one, SEEDS, DICTIONARY, max_length=512, mutate=mutate)
