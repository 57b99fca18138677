"""What a client asks of the stream of records: which of them, and from where on."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NoReturn
from urllib.parse import parse_qsl

from box_policy.audit.records import Entry, Event, Protocol, Record
from box_policy.audit.stream import CAPACITY
from box_policy.control.http.answers import ApiError
from box_policy.gate.mode import BOX_ID
from box_policy.policy.domains import InvalidName, canonical_pattern
from box_policy.policy.quoting import quoted
from box_policy.policy.reasons import Reason

NAME: Final = r"(?:\*\.)?[!-)+-~]{1,255}"
"""A name as records hold it, or ``*.`` and a name for all below it."""
MAX_BACKLOG: Final = CAPACITY

MAX_VALUES: Final = 50
"""Values of one kind."""

_MAX_NAME: Final = 255
_MAX_FIELDS: Final = 500
_VERDICTS: Final = {"allow": True, "deny": False}
_SWITCH: Final = {"true": True, "false": False}
_ONCE: Final = ("backlog", "follow", "last_event_id")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records pass: those that have one of the values of each kind that is given."""

    boxes: frozenset[str] = frozenset()
    events: frozenset[str] = frozenset()
    protocols: frozenset[str] = frozenset()
    verdicts: frozenset[bool] = frozenset()
    reasons: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    suffixes: tuple[str, ...] = ()
    """Each with its leading dot."""

    def __call__(self, entry: Entry) -> bool:
        if (self.boxes and entry.box not in self.boxes) or (self.events and entry.event not in self.events):
            return False
        if not isinstance(entry, Record):
            return not (self.protocols or self.verdicts or self.reasons or self.names or self.suffixes)
        if self.protocols and entry.protocol not in self.protocols:
            return False
        if self.verdicts and entry.allowed not in self.verdicts:
            return False
        if self.reasons and entry.reason not in self.reasons:
            return False
        return not (self.names or self.suffixes) or self._is_named(entry.name)

    def _is_named(self, name: str | None) -> bool:
        if name is None:
            return False
        name = _comparable(name)
        return name in self.names or name.endswith(self.suffixes)


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked of the stream."""

    wanted: Wanted
    backlog: int = 0
    """Records that pass the filter, to be shown first."""
    follow: bool = True
    """Go on with what comes."""
    last_event_id: str | None = None


def parse_query(query: bytes) -> Query:
    """The question that a query string asks.

    Raises:
        ApiError: it holds something else.
    """
    try:
        fields = parse_qsl(
            query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS
        )
    except ValueError:
        raise ApiError(
            "query_invalid", f"the query can't be read, or has more than {_MAX_FIELDS} fields"
        ) from None
    given: dict[str, list[str]] = {}
    for key, value in fields:
        given.setdefault(key, []).append(value)
    for key, values in given.items():
        if len(values) > (1 if key in _ONCE else MAX_VALUES):
            _refuse(f"{quoted(key)} is given too often")
    names = _names(given.pop("name", []))
    wanted = Wanted(
        boxes=frozenset(_matching(given.pop("box", []), "box", BOX_ID)),
        events=_words(given.pop("event", []), "event", Event),
        protocols=_words(given.pop("protocol", []), "protocol", Protocol),
        verdicts=frozenset(_choice(value, "verdict", _VERDICTS) for value in given.pop("verdict", [])),
        reasons=_words(given.pop("reason", []), "reason", Reason),
        names=frozenset(_comparable(name) for name in names if not name.startswith("*.")),
        suffixes=tuple(_comparable(name[1:]) for name in names if name.startswith("*.")),
    )
    backlog = given.pop("backlog", ["0"])[0]
    if not re.fullmatch(r"[0-9]{1,5}", backlog) or int(backlog) > MAX_BACKLOG:
        _refuse(f"backlog: {quoted(backlog)} is not a number from 0 to {MAX_BACKLOG}")
    follow = _choice(given.pop("follow", ["true"])[0], "follow", _SWITCH)
    last_event_id = given.pop("last_event_id", [""])[0]
    for key in given:
        _refuse(f"unknown: {quoted(key)}")
    return Query(wanted, int(backlog), follow, last_event_id or None)


def _comparable(name: str) -> str:
    return name.lower().removesuffix(".")


def _matching(values: list[str], key: str, pattern: str) -> list[str]:
    for value in values:
        if not re.fullmatch(pattern, value):
            _refuse(f"{key}: {quoted(value)} is none")
    return values


def _names(values: list[str]) -> list[str]:
    for value in values:
        if not value.isascii() and len(value) <= _MAX_NAME:
            try:
                known_as = canonical_pattern(value)
            except InvalidName:
                continue
            _refuse(f"name: records hold {quoted(value)} in its ASCII form: write it as {known_as}")
    return _matching(values, "name", NAME)


def _words(values: list[str], key: str, words: type[StrEnum]) -> frozenset[str]:
    return frozenset(_choice(value, key, {str(word): str(word) for word in words}) for value in values)


def _choice[Choice](value: str, key: str, choices: Mapping[str, Choice]) -> Choice:
    if value not in choices:
        _refuse(f"{key}: {quoted(value)} is not one of {', '.join(choices)}")
    return choices[value]


def _refuse(what: str) -> NoReturn:
    raise ApiError("query_invalid", f"the query can't be answered: {what}")
