"""DNS questions read strictly, and answers written (RFC 1035 section 4, RFC 6891, RFC 8914).

A question is only ever judged and then asked anew, so all that is needed of it is its name, type and
whether the client speaks EDNS. What could carry anything else (further records, options, trailing
bytes) is refused or dropped. Written by hand, because the codecs at hand are not exact enough to judge
by: mitmproxy's joins a label that contains a dot with its neighbours and refuses names that only
IDNA 2008 knows.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

_HEADER: Final = struct.Struct("!HHHHHH")
_QUESTION: Final = struct.Struct("!HH")
_RECORD: Final = struct.Struct("!HHHIH")  # with its name compressed to a pointer
_OPT: Final = struct.Struct("!BHHBBHH")
_QUESTION_NAME: Final = 0xC00C  # a pointer to the question, which follows the header

_RESPONSE: Final = 0x8000
_TRUNCATED: Final = 0x0200
_RECURSION_DESIRED: Final = 0x0100
_RECURSION_AVAILABLE: Final = 0x0080
_OPCODE: Final = 0x7800

_IN: Final = 1
_OPT_TYPE: Final = 41
_EXTENDED_ERROR: Final = 15
_META_TYPES: Final = range(249, 256)  # TKEY, TSIG, IXFR, AXFR, MAILB, MAILA, ANY (RFC 6895 section 3.1)
_MAX_NAME: Final = 255

UDP_SIZE: Final = 1232
"""The largest answer sent over UDP, however large the client would take it (no IP fragments)."""
_SMALL_UDP_SIZE: Final = 512


class Rcode(IntEnum):
    """Response codes (RFC 1035 section 4.1.1, RFC 6891 section 9)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


class ExtendedError(IntEnum):
    """Extended DNS Errors (RFC 8914 section 4)."""

    OTHER = 0
    BLOCKED = 15
    FILTERED = 17
    PROHIBITED = 18
    NOT_SUPPORTED = 21
    NETWORK_ERROR = 23


@dataclass(frozen=True, slots=True)
class Question:
    """One message that asks, as far as it could be read.

    ``fault`` is NOERROR for a well-formed question, else the code to answer with.
    """

    id: int
    flags: int
    fault: Rcode
    name: bytes = b""
    """Labels joined by dots. A byte that could be mistaken for structure makes the name ``\\``-escaped,
    and thereby no valid host name."""
    type: int = 0
    section: bytes = b""
    """The question section as sent, to be echoed."""
    udp_size: int = _SMALL_UDP_SIZE
    """The largest answer that the client takes over UDP."""
    edns: bool = False


def read_question(message: bytes) -> Question | None:
    """Read a message from a client. None: nothing that may be answered. Never raises."""
    if len(message) < _HEADER.size:
        return None
    number, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(message)
    if flags & _RESPONSE:
        return None  # answering answers can make two servers talk for ever
    if flags & _OPCODE:
        return Question(number, flags, Rcode.NOTIMP)
    if questions != 1 or answers or authorities or additionals > 1:
        return Question(number, flags, Rcode.FORMERR)
    read = _read_name(message, _HEADER.size)
    if read is None or len(message) < read[1] + _QUESTION.size:
        return Question(number, flags, Rcode.FORMERR)
    name, position = read
    kind, class_ = _QUESTION.unpack_from(message, position)
    position += _QUESTION.size
    section = message[_HEADER.size : position]
    fault = Rcode.NOERROR
    udp_size = _SMALL_UDP_SIZE
    if additionals:
        if len(message) < position + _OPT.size:
            return Question(number, flags, Rcode.FORMERR)
        root, record_type, udp_size, _, version, _, length = _OPT.unpack_from(message, position)
        position += _OPT.size + length  # the options themselves are of no use here
        if root or record_type != _OPT_TYPE:
            return Question(number, flags, Rcode.FORMERR)
        if version:
            fault = Rcode.BADVERS
    if position != len(message):
        return Question(number, flags, Rcode.FORMERR)
    if fault is Rcode.NOERROR and (class_ != _IN or kind in _META_TYPES):
        fault = Rcode.REFUSED
    size = max(_SMALL_UDP_SIZE, min(udp_size, UDP_SIZE))
    return Question(number, flags, fault, name, kind, section, size, bool(additionals))


def _read_name(message: bytes, position: int) -> tuple[bytes, int] | None:
    """The name at a position, and where it ends. Compression has no place in a question."""
    labels: list[bytes] = []
    start = position
    while position < len(message):
        size = message[position]
        position += 1
        if size == 0:
            return b".".join(labels), position
        if size > 63 or position + size > len(message) or position + size - start >= _MAX_NAME:
            return None
        label = message[position : position + size]
        labels.append(label.replace(b"\\", b"\\\\").replace(b".", b"\\."))
        position += size
    return None


def write_answer(
    question: Question,
    rcode: Rcode,
    *,
    records: tuple[tuple[int, bytes], ...] = (),
    ttl: int = 0,
    error: tuple[ExtendedError, str] | None = None,
    max_size: int | None = None,
) -> bytes:
    """A response. Records have the question's name; ``ttl`` is in seconds.

    An extended error goes to clients that speak EDNS only: to others an OPT record must not be sent
    (RFC 6891 section 7). Over ``max_size`` bytes the records are left out and TC is set.
    """
    flags = (
        _RESPONSE | _RECURSION_AVAILABLE | (question.flags & (_OPCODE | _RECURSION_DESIRED)) | (rcode & 0xF)
    )
    additional = _write_opt(rcode, error) if question.edns else b""
    body = b"".join(_RECORD.pack(_QUESTION_NAME, kind, _IN, ttl, len(data)) + data for kind, data in records)
    count = len(records)
    if max_size is not None and _HEADER.size + len(question.section) + len(body) + len(additional) > max_size:
        flags |= _TRUNCATED
        body, count = b"", 0
    header = _HEADER.pack(question.id, flags, 1 if question.section else 0, count, 0, 1 if additional else 0)
    return header + question.section + body + additional


def refusal(message: bytes) -> bytes | None:
    """A bare REFUSED to a message that nobody has read. None: nothing that may be answered."""
    if len(message) < _HEADER.size:
        return None
    number, flags, *_ = _HEADER.unpack_from(message)
    return None if flags & _RESPONSE else write_answer(Question(number, flags, Rcode.REFUSED), Rcode.REFUSED)


def _write_opt(rcode: Rcode, error: tuple[ExtendedError, str] | None) -> bytes:
    option = b""
    if error is not None:
        content = struct.pack("!H", error[0]) + error[1].encode("ascii", "replace")[:200]
        option = struct.pack("!HH", _EXTENDED_ERROR, len(content)) + content
    return _OPT.pack(0, _OPT_TYPE, UDP_SIZE, rcode >> 4, 0, 0, len(option)) + option
