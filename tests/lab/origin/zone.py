"""What the lab's name server answers: a table that tests change while it serves."""

import dataclasses
import ipaddress
import re
from collections.abc import Sequence
from typing import Any, Final

from dnslib import AAAA, CNAME, HTTPS, QTYPE, RCODE, RR, SOA, TXT, A, DNSRecord

from tests.lab import plan

_REBIND_SUFFIX: Final = ".rebind.test"
_CHAIN: Final = 70
"""Links of a CNAME chain that an answer holds: more than any resolver follows."""


@dataclasses.dataclass(slots=True)
class Entry:
    """What a name has, and how the server behaves when asked for it."""

    A: Sequence[str] = ()
    AAAA: Sequence[str] = ()
    CNAME: str | None = None
    HTTPS: str | None = None
    TXT: str | None = None
    ttl: int = 60
    rcode: str = "NOERROR"
    delay: float = 0
    silent: bool = False
    sequence: Sequence[Sequence[str]] = ()
    truncate: bool = False
    wrong_id_first: bool = False
    wrong_question_first: bool = False
    raw: bytes | None = None
    asked: dict[str, int] = dataclasses.field(default_factory=dict)
    """How often each type was."""


class Zone:
    """All names under the root: those set, and the default ones."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self.reset()

    def reset(self) -> None:
        """Back to the default names."""
        self._entries = {
            "allowed.test": Entry(A=[plan.ALLOWED4], AAAA=[plan.ALLOWED6]),
            "*.wild.test": Entry(A=[plan.WILDCARD4]),
            "front.cdn.test": Entry(A=[plan.SHARED4]),
            "hidden.othercdn.test": Entry(A=[plan.SHARED4]),
            "evil.test": Entry(A=[plan.EVIL4], AAAA=[plan.EVIL6]),
            "private.test": Entry(A=[plan.PRIVATE4]),
            "metadata.test": Entry(A=[plan.METADATA4]),
        }

    def set(self, name: str, values: dict[str, Any]) -> None:
        """Set all that a name has. ValueError, with nothing changed, if it can't be put into an answer."""
        entry = Entry(**values)
        name = name.lower().removesuffix(".")
        try:
            for addresses in (entry.A, entry.AAAA, *entry.sequence):
                for address in addresses:
                    ipaddress.ip_address(address)
            _records(name, "A", dataclasses.replace(entry, asked={}))
            _records(name, "HTTPS", entry)
            getattr(RCODE, entry.rcode)
        except Exception as error:
            raise ValueError(f"{name}: {error}") from error
        self._entries[name] = entry

    def find(self, name: str) -> Entry | None:
        """The entry of a name: its own, or the nearest wildcard's above it."""
        name = name.lower()
        if entry := self._entries.get(name):
            return entry
        if name.endswith(_REBIND_SUFFIX) and (entry := _rebinding(name.removesuffix(_REBIND_SUFFIX))):
            self._entries[name] = entry
            return entry
        labels = name.split(".")
        for depth in range(1, len(labels)):
            if entry := self._entries.get(".".join(["*", *labels[depth:]])):
                return entry
        return None

    def answer(self, query: DNSRecord, name: str, kind: str) -> DNSRecord:
        """The whole answer to a question, as a recursive server gives it: with what a CNAME leads to."""
        reply = query.reply(ra=1, aa=0)
        entry = self.find(name)
        if entry is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif entry.rcode != "NOERROR":
            reply.header.rcode = getattr(RCODE, entry.rcode)
            return reply
        for _ in range(_CHAIN):
            if entry is None:
                break
            reply.add_answer(*_records(name, kind, entry))
            if not entry.CNAME or kind == "CNAME":
                break
            name = entry.CNAME
            entry = self.find(name)
        if not any(record.rtype != QTYPE.CNAME for record in reply.rr):
            # RFC 2308: how long the absence holds.
            authority = SOA("ns.test", "hostmaster.test", (1, 3600, 600, 86400, 1))
            reply.add_auth(RR("test", QTYPE.SOA, ttl=1, rdata=authority))
        return reply


def _records(name: str, kind: str, entry: Entry) -> list[RR]:
    if entry.CNAME:
        return [RR(name, QTYPE.CNAME, ttl=entry.ttl, rdata=CNAME(entry.CNAME))]
    data: list[Any] = []
    if kind in {"A", "AAAA"}:
        make = A if kind == "A" else AAAA
        data = [make(address) for address in _addresses(kind, entry)]
    elif kind == "HTTPS" and entry.HTTPS:
        data = [HTTPS.fromZone(entry.HTTPS.split())]
    elif kind == "TXT" and entry.TXT:
        data = [TXT(entry.TXT)]
    return [RR(name, getattr(QTYPE, kind), ttl=entry.ttl, rdata=rdata) for rdata in data]


def _addresses(kind: str, entry: Entry) -> Sequence[str]:
    if not entry.sequence:
        return entry.A if kind == "A" else entry.AAAA
    turn = min(entry.asked.get(kind, 0), len(entry.sequence) - 1)
    entry.asked[kind] = entry.asked.get(kind, 0) + 1
    version = 4 if kind == "A" else 6
    return [address for address in entry.sequence[turn] if ipaddress.ip_address(address).version == version]


def _rebinding(label: str) -> Entry | None:
    """The answer that a label of ``rebind.test`` asks for itself.

    ``a_10-66-0-1_x``: that address. ``x_<32 hex digits>_x``: that IPv6 address. ``both_<a>_<b>_x``: both at
    once. ``flip_<a>_<b>_x``: the first the first time, then the second.
    """
    if match := re.fullmatch(r"a_([0-9-]+)_.*", label):
        return Entry(A=[match[1].replace("-", ".")], ttl=0)
    if match := re.fullmatch(r"x_([0-9a-f]{32})_.*", label):
        return Entry(AAAA=[str(ipaddress.IPv6Address(int(match[1], 16)))], ttl=0)
    if match := re.fullmatch(r"(both|flip)_([0-9-]+)_([0-9-]+)_.*", label):
        first, second = match[2].replace("-", "."), match[3].replace("-", ".")
        if match[1] == "both":
            return Entry(A=[first, second], ttl=0)
        return Entry(sequence=[[first], [second]], ttl=0)
    return None
