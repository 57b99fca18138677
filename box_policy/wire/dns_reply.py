"""DNS questions to a name server, and its replies read strictly and cheaply (RFC 1035 section 4, RFC 6891).

Of a reply only this counts: the records of the asked type, at the end of the chain of CNAMEs that starts at
the asked name. What else it says, of whatever name, is not looked at. Written by hand, because replies may be
hostile and are read on the loop that moves every box's bytes: dnspython builds objects of all sections, which
takes 0.1 s for a message of 64 KiB; here reading ends with the records that may be used, after 7 ms at worst.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from box_policy.wire.dns_message import UDP_SIZE

_HEADER: Final = struct.Struct("!HHHHHH")
_QUESTION: Final = struct.Struct("!HH")
_RECORD: Final = struct.Struct("!HHiH")  # the TTL is signed: see _ttl
_MINIMUM: Final = struct.Struct("!i")
# The root, OPT, the size of an answer over UDP, and neither flags nor options.
_OPT: Final = struct.pack("!BHHIH", 0, 41, UDP_SIZE, 0, 0)

_RESPONSE: Final = 0x8000
_OPCODE: Final = 0x7800
_TRUNCATED: Final = 0x0200
_RECURSION_DESIRED: Final = 0x0100
_RCODE: Final = 0xF
_POINTER: Final = 0xC0
_IN: Final = 1

_CNAME: Final = 5
_SOA: Final = 6
NOERROR: Final = 0
_SERVFAIL: Final = 2
NXDOMAIN: Final = 3
_MAX_NAME: Final = 255
_MAX_POINTERS: Final = 127  # a name has no more labels, and a pointer leads to one
_MAX_LINKS: Final = 16
"""CNAMEs that are followed."""
_MAX_READ: Final = 128
"""Records of a section that are looked at."""
MAX_RECORDS: Final = 64
"""Records of the asked type that are kept."""

RECORD_FORMATS: Final[Mapping[int, tuple[int | str, ...]]] = {
    1: (4,),  # A
    2: ("name",),  # NS
    _CNAME: ("name",),
    _SOA: ("name", "name", 20),
    12: ("name",),  # PTR
    15: (2, "name"),  # MX
    16: ("strings",),  # TXT
    28: (16,),  # AAAA
    33: (6, "name"),  # SRV, RFC 2782
    35: (4, "string", "string", "string", "name"),  # NAPTR, RFC 3403
    257: (1, "string", "rest"),  # CAA, RFC 8659
}
"""The types that are asked for, and what their data consist of; a number is a size in bytes.

These are the types that programs look up. Every other one is answered as if the name had none of it, and
nothing is asked. HTTPS and SVCB (RFC 9460) carry keys for Encrypted Client Hello, which hides names, and
address hints. A6, APL, WKS, IPSECKEY, HIP, AMTRELAY and those of ILNP carry addresses, too, that nothing
would judge. TLSA, SSHFP and DNSKEY are only believed with signatures, which an answer made anew doesn't
have. NULL, private and unknown types carry whatever bytes a zone's owner likes. So does TXT, but too much is
verified by it to go without.
"""


@dataclass(frozen=True, slots=True)
class Query:
    """A question, as it is sent."""

    message: bytes
    type: int
    section: bytes
    """The question section."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a name server says to a query."""

    rcode: int
    truncated: bool = False
    """Ask again over TCP. Then there are no records here."""
    records: tuple[tuple[int, bytes], ...] = ()
    """Type and data of each record at the end of the CNAME chain; names in the data are not compressed."""
    ttl: int | None = None
    """Seconds for which all of this holds; None if it doesn't say."""


class _Malformed(Exception):
    """The message breaks its own grammar."""


def write_query(number: int, name: str, kind: int) -> Query:
    """The question for the records of a type that a canonical name has. ``number`` is the message's id.

    ValueError if the name has a label that is empty or too long, or the type is none of RECORD_FORMATS.
    """
    if kind not in RECORD_FORMATS:
        raise ValueError(f"type {kind} is not asked for")
    labels = name.encode("ascii").split(b".")
    if not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"no host name: {name!r}")
    section = b"".join(bytes([len(label)]) + label for label in labels) + b"\0" + _QUESTION.pack(kind, _IN)
    header = _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 1)
    return Query(header + section + _OPT, kind, section)


def read_reply(message: bytes, query: Query) -> Reply | None:
    """Read what came back. None if it is no well-formed reply to this very query. Never raises."""
    if len(message) < _HEADER.size:
        return None
    number, flags, questions, answers, authorities, _ = _HEADER.unpack_from(message)
    if number != int.from_bytes(query.message[:2]) or flags & (_RESPONSE | _OPCODE) != _RESPONSE:
        return None
    rcode = flags & _RCODE
    start = _HEADER.size + len(query.section)
    repeated = message[_HEADER.size : start]
    if questions != 1 or repeated[: -_QUESTION.size].lower() + repeated[-_QUESTION.size :] != query.section:
        # Some servers that refuse a question don't repeat it.
        failed = questions == 0 and rcode not in (NOERROR, NXDOMAIN)
        return Reply(rcode) if failed else None
    if flags & _TRUNCATED or rcode not in (NOERROR, NXDOMAIN):
        return Reply(rcode, truncated=bool(flags & _TRUNCATED))
    try:
        return _Sections(message, start, query).reply(rcode, answers, authorities)
    except (_Malformed, IndexError, struct.error):
        return None


class _Sections:
    """Reads the records behind the question."""

    def __init__(self, message: bytes, position: int, query: Query) -> None:
        self._message = message
        self._position = position
        self._query = query

    def reply(self, rcode: int, answers: int, authorities: int) -> Reply:
        kind = self._query.type
        aliases: dict[bytes, tuple[bytes, int]] = {}
        found: dict[bytes, tuple[dict[bytes, None], list[int]]] = {}
        for _ in range(min(answers, _MAX_READ)):
            owner, record_type, ttl, start, end = self._record()
            if record_type == kind:
                data, ttls = found.setdefault(owner, ({}, []))
                data[self._data(kind, start, end)] = None
                ttls.append(ttl)
            elif record_type == _CNAME:
                aliases.setdefault(owner, (self._data(_CNAME, start, end), ttl))

        name = self._query.section[: -_QUESTION.size]
        held: list[int] = []
        while name not in found and name in aliases:
            if len(held) == _MAX_LINKS:
                return Reply(_SERVFAIL)
            name, ttl = aliases[name]
            held.append(ttl)
        if rcode == NOERROR and name in found:
            data, ttls = found[name]
            records = tuple((kind, content) for content in data)[:MAX_RECORDS]
            return Reply(rcode, records=records, ttl=min(held + ttls))
        if answers <= _MAX_READ:
            held += self._absence(min(authorities, _MAX_READ))
        return Reply(rcode, ttl=min(held, default=None))

    def _absence(self, records: int) -> list[int]:
        """How long it holds that there is nothing, as the zone's SOA record says (RFC 2308 section 5)."""
        for _ in range(records):
            _, record_type, ttl, start, end = self._record()
            if record_type == _SOA:
                self._data(_SOA, start, end)
                return [ttl, _ttl(*_MINIMUM.unpack_from(self._message, end - _MINIMUM.size))]
        return []

    def _record(self) -> tuple[bytes, int, int, int, int]:
        """The owner, type and TTL of the next record, and where its data start and end. Of another class
        than the Internet's the type is 0."""
        owner, position = self._name(self._position)
        kind, class_, ttl, length = _RECORD.unpack_from(self._message, position)
        start = position + _RECORD.size
        self._position = start + length
        if self._position > len(self._message):
            raise _Malformed
        return owner, kind if class_ == _IN else 0, _ttl(ttl), start, self._position

    def _data(self, kind: int, start: int, end: int) -> bytes:
        """A record's data, with its names spelt out."""
        message, position, data = self._message, start, b""
        for part in RECORD_FORMATS[kind]:
            match part:
                case int(size):
                    pass
                case "name":
                    name, position = self._name(position)
                    data += name
                    continue
                case "string":
                    size = 1 + message[position]
                case "strings":
                    size = self._strings(position, end)
                case _:
                    size = max(0, end - position)
            data += message[position : position + size]
            position += size
        if position != end:
            raise _Malformed
        return data

    def _strings(self, position: int, end: int) -> int:
        """The size of one or more character strings that reach to the end."""
        at = position + 1 + self._message[position]
        while at < end:
            at += 1 + self._message[at]
        return at - position

    def _name(self, position: int) -> tuple[bytes, int]:
        """The name at a position, in lower case and without pointers, and where what follows it is."""
        message, name, after = self._message, b"", 0
        start = position
        for _ in range(_MAX_POINTERS + 1):
            while 0 < (size := message[position]) < 64:
                name += message[position : position + 1 + size]
                position += 1 + size
                if len(name) >= _MAX_NAME:
                    raise _Malformed
            if size < _POINTER:
                if size:
                    raise _Malformed  # the two other sorts of label were never used, or given up
                return name.lower() + b"\0", after or position + 1
            target = (size & ~_POINTER) << 8 | message[position + 1]
            if target >= start:
                raise _Malformed  # it must lead back, or it may never end
            after = after or position + 2
            start = position = target
        raise _Malformed


def _ttl(seconds: int) -> int:
    return max(0, seconds)  # with the highest bit set it counts as none (RFC 2181 section 8)
