"""Reads JSON that means one thing to everybody, and writes it without holding up other threads."""

import json
import math
import re
from json import scanner
from typing import Any, Final, NoReturn

from box_policy.policy.model import MAX_ENTRIES
from box_policy.policy.quoting import quoted

MAX_DEPTH: Final = 16
"""Deepest nesting. The deepest policy needs 4."""
MAX_STRING: Final = 16 * 1024
"""Characters of one string, as written, with its quotes, unless more are expected. A target has 2,048 at
most."""
MAX_COMMAS: Final = 1_000_000
"""Of a whole body, which stand for its values. The largest policy has three lists of 250,000 entries."""

_IN_ONE_CALL: Final = 64 * 1024
"""Characters that Python's parser in C reads; during that no other thread runs."""
_MAX_DIGITS: Final = 19

# Possessive, so that a string without an end is not tried again from each of its quotes.
_STRING_OR_BRACKET: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[][{}]', re.DOTALL)


class InvalidBody(ValueError):
    """The bytes are not JSON that means one thing."""


def parse_json(body: bytes, max_string: int = MAX_STRING) -> object:
    """The value that ``body`` stands for, to every reader alike.

    Not YAML, of which JSON is nearly a part: a program that sends a policy should learn of its own
    mistakes, and there must be no second reading of what it sent. Where JSON's readers differ (RFC 8259,
    sections 4, 6 and 8.1) the body is refused: duplicate keys, NaN and infinities, a byte order mark.

    Args:
        max_string: characters that a string may have, as written, with its quotes.

    Raises:
        InvalidBody: with what is wrong.
    """
    if body.startswith(b"\xef\xbb\xbf"):
        raise InvalidBody("it starts with a byte order mark")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidBody(f"it is not UTF-8, at byte {error.start}") from None
    _check_tokens(text, max_string)
    try:
        return json.loads(
            text,
            cls=json.JSONDecoder if len(text) <= _IN_ONE_CALL else _Interruptible,
            object_pairs_hook=_without_duplicates,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_real,
        )
    except json.JSONDecodeError as error:
        raise InvalidBody(f"{error.msg}, line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise InvalidBody("it is nested too deeply") from None


def render_json(value: object) -> str:
    """``value`` as JSON, for threads: not in one call to C, during which no other thread would run."""
    return "".join(json.JSONEncoder(separators=(",", ":"), allow_nan=False).iterencode(value))


class _Interruptible(json.JSONDecoder):
    """Python's decoder without its loop in C, which no thread interrupts: 8 MiB take it up to 0.4 s."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.scan_once = scanner.py_make_scanner(self)  # type: ignore[attr-defined]


def _check_tokens(text: str, max_string: int) -> None:
    if text.count(",") > MAX_COMMAS:
        raise InvalidBody(f"it has more than {MAX_COMMAS} commas")
    # Before the parser sees it: that one recurses, on whatever stack its thread has.
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        token = match[0]
        if token in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidBody(f"it is nested deeper than {MAX_DEPTH} levels")
        elif token in ("]", "}"):
            depth -= 1
        elif len(token) > max_string:
            raise InvalidBody(f"a string has more than {max_string} characters")


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(pairs) > MAX_ENTRIES:
        raise InvalidBody(f"an object has more than {MAX_ENTRIES} keys")
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidBody(f"the key {quoted(key)} is given twice")
            seen.add(key)
    return value


def _constant(word: str) -> NoReturn:
    raise InvalidBody(f"{word} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise InvalidBody(f"a number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits) if len(digits) <= 2 * _MAX_DIGITS else math.inf
    if not math.isfinite(value):
        raise InvalidBody("a number that is too long, or too large")
    return value
