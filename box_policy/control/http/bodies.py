"""Reads the body of a request: JSON, within bounds of size, time and depth."""

import asyncio
import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from starlette.requests import Request

from box_policy.control.http.answers import ApiError
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.quoting import quoted

MAX_BODY: Final = 8 * 1024 * 1024
"""Bytes; as of a policy document in a file."""
BODY_TIMEOUT: Final = 10.0
"""Seconds for a whole body, however it trickles in."""
MAX_DEPTH: Final = 16
"""Deepest nesting. The deepest policy needs 4."""

_INLINE: Final = 64 * 1024
"""Bytes of a body that is parsed on the loop; larger ones are in a thread."""
_MAX_DIGITS: Final = 19

_STRING_OR_BRACKET: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[][{}]', re.DOTALL)
_MEDIA_TYPE: Final = re.compile(r'application/json[ \t]*(?:;[ \t]*charset="?utf-8"?[ \t]*)?', re.IGNORECASE)
_ENTITY_TAG: Final = re.compile(r'"(?P<tag>[0-9]{1,18})"|(?P<bare>[0-9]{1,18})')


class InvalidBody(ValueError):
    """The bytes are not JSON that means one thing."""


@dataclass(frozen=True, slots=True)
class Body:
    """What a request's body holds."""

    value: object
    large: bool
    """To judge it is work for a thread."""


async def read_json(request: Request, *, within: float = BODY_TIMEOUT) -> Body:
    """The value in the request's body, which has to be there ``within`` so many seconds.

    Raises:
        ApiError: there is none, or it breaks a bound.
        ClientDisconnect: the client went away before the end.
    """
    _check_media_type(request)
    body = await _read(request, within)
    try:
        if len(body) <= _INLINE:
            return Body(parse_json(body), large=False)
        return Body(await asyncio.to_thread(parse_json, body), large=True)
    except InvalidBody as error:
        raise ApiError("body_invalid", f"the body is not acceptable JSON: {error}") from None


def parse_json(body: bytes) -> object:
    """The value that ``body`` stands for, to every reader alike.

    Not YAML, of which JSON is nearly a part: a program that sends a policy should learn of its own
    mistakes, and there must be no second reading of what it sent. Where JSON's readers differ (RFC 8259,
    sections 4, 6 and 8.1) the body is refused: duplicate keys, NaN and infinities, a byte order mark.

    Raises:
        InvalidBody: with what is wrong.
    """
    if body.startswith(b"\xef\xbb\xbf"):
        raise InvalidBody("it starts with a byte order mark")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidBody(f"it is not UTF-8, at byte {error.start}") from None
    _check_depth(text)
    try:
        return json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_real,
        )
    except json.JSONDecodeError as error:
        raise InvalidBody(f"{error.msg}, line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise InvalidBody("it is nested too deeply") from None


async def parse_policy(value: object, *, large: bool) -> NetworkPolicy:
    """The policy that a body, or a part of it, stands for. Raises PolicyError."""
    return await asyncio.to_thread(NetworkPolicy.parse, value) if large else NetworkPolicy.parse(value)


def parse_if_match(values: Sequence[str]) -> Collection[int] | None:
    """The generations that ``If-Match`` names (RFC 9110, section 13.1.1); None for whichever is in force.

    Bare numbers are taken too.

    Raises:
        ApiError: it can't be read.
    """
    if not values:
        return None
    tags = [tag.strip() for tag in ",".join(values).split(",")]
    if tags == ["*"]:
        return None
    generations = set()
    for tag in tags:
        match = _ENTITY_TAG.fullmatch(tag)
        if match is None:
            raise ApiError(
                "precondition_invalid",
                f'If-Match: {quoted(tag)} is no generation; write "3", or * for whichever is in force',
            )
        generations.add(int(match["tag"] or match["bare"]))
    return generations


def _check_media_type(request: Request) -> None:
    types = request.headers.getlist("content-type")
    if len(types) != 1 or not _MEDIA_TYPE.fullmatch(types[0].strip()):
        raise ApiError("media_type_unsupported", "send the body as Content-Type: application/json")
    encodings = request.headers.getlist("content-encoding")
    if any(encoding.strip().lower() != "identity" for encoding in encodings):
        raise ApiError("media_type_unsupported", "send the body without a Content-Encoding")


async def _read(request: Request, within: float) -> bytes:
    too_large = ApiError("body_too_large", f"a body has at most {MAX_BODY // 1024 // 1024} MiB")
    # As text: an announced length may be far larger than what Python would convert.
    announced = request.headers.get("content-length", "0").lstrip("0")
    if len(announced) > _MAX_DIGITS or int(announced or 0) > MAX_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(within):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise too_large
    except TimeoutError:
        raise ApiError("body_timeout", f"the body was not here within {within:g} seconds") from None
    return bytes(body)


def _check_depth(text: str) -> None:
    # Before the parser sees it: that one recurses, on whatever stack its thread has. Possessive, so that a
    # string without an end is not tried again from each of its quotes.
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        token = match[0]
        if token in ("[", "{"):
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidBody(f"it is nested deeper than {MAX_DEPTH} levels")
        elif token in ("]", "}"):
            depth -= 1


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
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
