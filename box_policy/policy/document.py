"""A policy document: YAML or JSON text in, a policy out, and errors that name the line.

YAML is read without its surprises. A document holds mappings, lists and strings; ``null`` is the one
other value. What YAML would turn into a number, a boolean or a date is refused, not guessed at.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import yaml

from box_policy.policy.model import MAX_ISSUES, MORE_ISSUES, NetworkPolicy, PolicyError, PolicyIssue
from box_policy.policy.quoting import quoted

MAX_BYTES = 8 * 1024 * 1024
"""Largest document in bytes."""
MAX_DEPTH = 16
"""Deepest nesting. The deepest policy needs 4; a parser that recurses must not be led further."""
MAX_VALUES = 1_000_000
"""Most values in one document."""

# libyaml's parser is 20 times faster; PyYAML can be built without it.
_Loader: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_STRING = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"
_WHAT_YAML_READS = {
    "tag:yaml.org,2002:bool": "a boolean",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:timestamp": "a date",
    "tag:yaml.org,2002:merge": "a merge key",
    "tag:yaml.org,2002:value": "a default key",
}

_QUOTE_THE_STAR = 'an unquoted "*" starts an alias in YAML; put a pattern in quotes, as "*.example.com"'

type _Place = tuple[int, int]
"""Line and column, both from 1."""


class _Mark(Protocol):
    """Where the parser was; PyYAML and libyaml have a class each."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


@dataclass(frozen=True, slots=True)
class DocumentIssue(PolicyIssue):
    """One thing that is wrong with a policy document, and where."""

    line: int
    """From 1."""
    column: int
    """From 1, in characters."""


class DocumentError(PolicyError):
    """A document that holds no acceptable policy. One line an issue: ``NAME:LINE:COLUMN: issue``."""

    issues: tuple[DocumentIssue, ...]

    def __init__(self, name: str, issues: Iterable[DocumentIssue]) -> None:
        self.name = name
        super().__init__(issues)

    def __str__(self) -> str:
        return "\n".join(f"{self.name}:{issue.line}:{issue.column}: {issue}" for issue in self.issues)


def parse_document(text: str | bytes, *, name: str) -> NetworkPolicy:
    """The policy in ``text``. ``name`` stands for the document in errors, a file's path as a rule.

    Raises:
        DocumentError: with every issue, and the line and column of each.
    """
    try:
        root = _read(_decoded(text))
    except _Refused as refused:
        raise DocumentError(name, [DocumentIssue((), refused.message, *refused.place)]) from None
    issues = root.issues
    try:
        policy = NetworkPolicy.parse(root.value)
    except PolicyError as error:
        # An entry that isn't even a string is not also judged as a name.
        reported = {issue.location for issue in issues}
        issues += [
            DocumentIssue(issue.location, issue.message, *root.place_of(issue.location))
            for issue in error.issues
            if issue.location not in reported
        ]
    if issues:
        # What says that there are more stands last; its place is that of the whole policy.
        raise DocumentError(
            name, sorted(issues, key=lambda issue: (issue.message == MORE_ISSUES, issue.line, issue.column))
        )
    return policy


class _Refused(Exception):
    """The text is no document; nothing more can be said about it."""

    def __init__(self, message: str, place: _Place = (1, 1)) -> None:
        super().__init__(message)
        self.message = message
        self.place = place


@dataclass(slots=True)
class _Container:
    """A mapping or list while it is read."""

    value: dict[str, object] | list[object]
    location: tuple[str | int, ...]
    key: str | None = None
    """The key that waits for its value."""


@dataclass(slots=True)
class _Root:
    value: object = None
    place: _Place = (1, 1)
    places: dict[int, dict[str | int, _Place]] = field(default_factory=dict)
    """For each container (by id): where each of its entries starts, a mapping's at the key."""
    issues: list[DocumentIssue] = field(default_factory=list)
    """What is wrong with single entries; the others could still be read."""

    def place_of(self, location: tuple[str | int, ...]) -> _Place:
        """Where the entry at ``location`` is, or the nearest thing around it that exists."""
        value, place = self.value, self.place
        for step in location:
            found = self.places.get(id(value), {}).get(step)
            if found is None:
                break
            place = found
            value = value[step]  # type: ignore[index]
        return place


def _decoded(text: str | bytes) -> str:
    if len(text) > MAX_BYTES:
        raise _Refused(f"the document is larger than {MAX_BYTES // 1024 // 1024} MiB")
    try:
        # Encoded first, so that both kinds of input meet the same check: a str may hold lone surrogates.
        encoded = text.encode() if isinstance(text, str) else text
        return encoded.decode("utf-8-sig")
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        raise _Refused(f"the document is not UTF-8: {error.reason}") from None


def _place(mark: _Mark | None) -> _Place:
    return (1, 1) if mark is None else (mark.line + 1, mark.column + 1)


def _read(text: str) -> _Root:
    """The document's values, from the parser's events.

    Not yaml.load: a constructor knows neither places nor duplicate keys, and it follows aliases,
    with which a few lines make a billion values.
    """
    reader = _Reader()
    try:
        reader.loader = _Loader(text)
        while (event := reader.loader.get_event()) is not None and reader.step(event):
            pass
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error) from None
    except yaml.reader.ReaderError as error:
        raise _Refused(
            f"character U+{error.character:04X} is not allowed in YAML", _place_at(text, error)
        ) from None
    except _Refused:
        raise
    except Exception as error:
        # Nothing is known to get here. It stands because the scanner is not ours, and the text a stranger's.
        raise _Refused(f"not YAML ({type(error).__name__})") from None
    return reader.root


class _Reader:
    """Builds the values, one event after the other, without recursion."""

    def __init__(self) -> None:
        self.loader: yaml.SafeLoader | yaml.CSafeLoader
        self.root = _Root()
        self._open: list[_Container] = []
        self._documents = 0
        self._values = 0

    def step(self, event: yaml.Event) -> bool:
        """Take one event; False after the last."""
        if isinstance(event, yaml.ScalarEvent):
            self._check(event)
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._check(event)
            self._begin(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._open.pop()
        elif isinstance(event, yaml.AliasEvent):
            raise _Refused(f"aliases are not accepted; {_QUOTE_THE_STAR}", _place(event.start_mark))
        elif isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise _Refused("a second document; a file holds one policy", _place(event.start_mark))
        elif isinstance(event, yaml.StreamEndEvent):
            if not self._documents:
                raise _Refused('the document is empty; to deny everything write "mode: deny-all"')
            return False
        return True

    def _check(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _Refused(f"more than {MAX_VALUES:,} values", _place(event.start_mark))
        if event.anchor is not None:
            raise _Refused("anchors are not accepted", _place(event.start_mark))
        if event.tag is not None:
            raise _Refused(f"tags are not accepted: {quoted(event.tag)}", _place(event.start_mark))

    def _begin(self, event: yaml.Event) -> None:
        place = _place(event.start_mark)
        if len(self._open) >= MAX_DEPTH:
            raise _Refused(f"nested deeper than {MAX_DEPTH} levels", place)
        value: dict[str, object] | list[object] = {} if isinstance(event, yaml.MappingStartEvent) else []
        container = _Container(value, self._location())
        self._add(value, event)
        self._open.append(container)
        self.root.places[id(value)] = {}

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        text = event.value
        # Nothing but a string has a slash: most address ranges skip the resolver, which is slow on digits.
        plain = event.implicit[0] and "/" not in text
        tag = _STRING
        if plain:
            tag = self.loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        if tag == _NULL:
            self._add(None, event)
        elif tag == _STRING:
            self._add(text, event)
        else:
            what = _WHAT_YAML_READS.get(tag, "something else")
            self._complain(f"{quoted(text)} without quotes is {what} in YAML: put it in quotes", event)
            self._add(text, event)

    def _location(self) -> tuple[str | int, ...]:
        """Of the value that is read next."""
        if not self._open:
            return ()
        into = self._open[-1]
        if isinstance(into.value, list):
            return (*into.location, len(into.value))
        return into.location if into.key is None else (*into.location, into.key)

    def _complain(self, message: str, event: yaml.Event) -> None:
        line, column = _place(event.start_mark)
        self.root.issues.append(DocumentIssue(self._location(), message, line, column))
        if len(self.root.issues) > MAX_ISSUES:
            raise _Refused(f"more than {MAX_ISSUES} values that are not strings", (line, column))

    def _add(self, value: object, event: yaml.Event) -> None:
        if not self._open:
            self.root.value, self.root.place = value, _place(event.start_mark)
            return
        into = self._open[-1]
        places = self.root.places[id(into.value)]
        if isinstance(into.value, list):
            places[len(into.value)] = _place(event.start_mark)
            into.value.append(value)
        elif into.key is None:
            if not isinstance(value, str):
                raise _Refused("keys are strings", _place(event.start_mark))
            if value in into.value:
                self._complain(f"the key {quoted(value)} is given twice", event)
            places[value] = _place(event.start_mark)
            into.key = value
        else:
            into.value[into.key] = value
            into.key = None


def _syntax_error(error: yaml.MarkedYAMLError) -> _Refused:
    mark, problem = error.problem_mark or error.context_mark, error.problem or "not YAML"
    if error.context == "while scanning an alias":
        mark, problem = error.context_mark or mark, _QUOTE_THE_STAR
    return _Refused(problem, _place(mark))


def _place_at(text: str, error: yaml.reader.ReaderError) -> _Place:
    before = text[: error.position]
    return before.count("\n") + 1, error.position - before.rfind("\n")
