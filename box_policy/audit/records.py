"""One record a decision, one more at the end of an allowed connection, and one for each new policy. Where
there are too many of a box, one says how many were left out.

The fields and the words in them are fixed: the same record feeds the JSON log, the console, the stream
of decisions and the table at the end of a run. ``docs/records.md`` describes them for operators.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from itertools import count

from box_policy.policy.reasons import Reason

MAX_NAME = 255
"""Characters of an escaped name; what is longer is cut and ends in an ellipsis."""

MAX_ADDRESSES = 16
"""Addresses of one resolution that a record lists."""

MAX_DETAIL = 4096
"""Characters of the detail of a policy's record; what is longer is cut and ends in an ellipsis."""

_connection_numbers = count(1)


class Event(StrEnum):
    DECISION = "decision"
    END = "end"
    POLICY = "policy"
    SUPPRESSED = "suppressed"


class Outcome(StrEnum):
    """What became of a policy that somebody offered."""

    ACCEPTED = "accepted"
    """It is in force."""
    REFUSED = "refused"
    """It isn't one, or can't be trusted; the one before stays in force."""
    MISSING = "missing"
    """Its file has gone; the one before stays in force."""
    REMOVED = "removed"
    """It is in force no more: its box has gone."""


class Protocol(StrEnum):
    TCP = "tcp"
    TLS = "tls"
    POSTGRESQL = "postgresql"
    """TLS that PostgreSQL's SSLRequest has begun."""
    HTTP = "http"
    DNS = "dns"


def next_connection() -> int:
    """A number that ties a connection's records together; unique in this process."""
    return next(_connection_numbers)


def escape_name(raw: bytes | str) -> str:
    """A name as claimed, fit for any log: printable ASCII, backslash escapes, bounded.

    Names come from the box. One that could break a line, move a terminal's cursor or fail to be
    encoded must not be able to hide the record that it is in.
    """
    head = raw[: MAX_NAME + 1]
    text = head.decode("latin-1") if isinstance(head, bytes) else head
    escaped = "".join(
        c
        if "!" <= c <= "~" and c != "\\"
        else c.encode("unicode_escape").decode("ascii").replace(" ", "\\x20")
        for c in text
    )
    return escaped if len(escaped) <= MAX_NAME else escaped[: MAX_NAME - 3] + "..."


@dataclass(slots=True, kw_only=True)
class Record:
    """What was decided about one connection, request or question."""

    event: Event
    connection: int
    box: str
    generation: int
    protocol: Protocol
    allowed: bool
    reason: Reason
    rule: str = ""
    """The entry of the policy, or the special range, that decided; empty if none did."""
    name: str | None = None
    """The name as claimed, escaped by :func:`escape_name`."""
    claimed_address: str | None = None
    """Where the box's own connection was bound for."""
    claimed_port: int | None = None
    resolved: tuple[str, ...] = ()
    """What the gate itself found the name to be."""
    dialled: str | None = None
    """The address that is, or was, connected to."""
    mismatch: bool = False
    """The claimed address is not among the resolved ones."""
    ech: bool = False
    detail: str = ""
    """A few words for people: what was wrong with a hello, why a dial failed."""
    bytes_up: int | None = None
    """From the box; only at the end."""
    bytes_down: int | None = None
    duration: float | None = None
    """Seconds from accept; only at the end."""
    time: float = field(default_factory=time.time)
    """Seconds since the epoch."""

    def as_dict(self) -> dict[str, object]:
        """The record with its fixed field names, empty fields left out."""
        fields: dict[str, object] = {
            "time": timestamp(self.time),
            "event": self.event,
            "connection": self.connection,
            "box": self.box,
            "generation": self.generation,
            "protocol": self.protocol,
            "verdict": "allow" if self.allowed else "deny",
            "reason": self.reason,
            "rule": self.rule or None,
            "name": self.name,
            "claimed_address": self.claimed_address,
            "claimed_port": self.claimed_port,
            "resolved": list(self.resolved) or None,
            "dialled": self.dialled,
            "mismatch": self.mismatch or None,
            "ech": self.ech or None,
            "detail": self.detail or None,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "duration": None if self.duration is None else round(self.duration, 6),
        }
        return {key: value for key, value in fields.items() if value is not None}

    def as_json(self) -> str:
        """One line of ASCII JSON, without the line's end."""
        return json.dumps(self.as_dict(), separators=(",", ":"))


@dataclass(slots=True, kw_only=True)
class PolicyRecord:
    """What became of a policy that was put, or that a file held, or whose box has gone."""

    box: str
    generation: int
    """Of the policy that is in force now, or was the last."""
    outcome: Outcome
    source: str
    """Who offered it, or removed the box: ``control``, ``service``, or the file's path."""
    detail: str = ""
    """What is wrong with it; what it is, and how many connections it cut; why the box has gone."""
    time: float = field(default_factory=time.time)
    event: Event = Event.POLICY

    def as_dict(self) -> dict[str, object]:
        """The record with its fixed field names, empty fields left out."""
        detail = self.detail if len(self.detail) <= MAX_DETAIL else self.detail[: MAX_DETAIL - 3] + "..."
        fields: dict[str, object] = {
            "time": timestamp(self.time),
            "event": self.event,
            "box": self.box,
            "generation": self.generation,
            "outcome": self.outcome,
            "source": self.source,
            "detail": detail or None,
        }
        return {key: value for key, value in fields.items() if value is not None}

    def as_json(self) -> str:
        """One line of ASCII JSON, without the line's end."""
        return json.dumps(self.as_dict(), separators=(",", ":"))


@dataclass(slots=True, kw_only=True)
class SuppressedRecord:
    """How many records of a box were not written since the last that was: there were too many."""

    box: str
    records: int
    time: float = field(default_factory=time.time)
    event: Event = Event.SUPPRESSED

    def as_dict(self) -> dict[str, object]:
        """The record with its fixed field names."""
        return {
            "time": timestamp(self.time),
            "event": self.event,
            "box": self.box,
            "records": self.records,
        }

    def as_json(self) -> str:
        """One line of ASCII JSON, without the line's end."""
        return json.dumps(self.as_dict(), separators=(",", ":"))


type Entry = Record | PolicyRecord | SuppressedRecord
"""What sinks are given."""


def timestamp(seconds: float) -> str:
    """A moment (seconds since the epoch) as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def listed(addresses: Iterable[IPv4Address | IPv6Address]) -> tuple[str, ...]:
    """Addresses as a record holds them: text, bounded in number."""
    return tuple(str(address) for address, _ in zip(addresses, range(MAX_ADDRESSES), strict=False))
