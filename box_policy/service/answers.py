"""Answers that are large: made when they are sent, and in pieces.

A string of megabytes becomes JSON, or base64, in one call to C, during which nothing else runs in this
process: not the gate either. So it is done piece by piece, with a turn of the loop for the others after each.
"""

import base64
import codecs
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Final

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

_PIECE: Final = 48 * 1024
"""Bytes that are worked on at once. Divisible by 3, for base64; escaped, each may become six."""

type Make = Callable[[AsyncExitStack, Receive], Awaitable[Response]]


class Deferred(Response):
    """An answer that is made when it is to be sent. What it holds is let go of when that is done."""

    def __init__(self, make: Make) -> None:
        """``make`` is given a stack for what is held, and what tells that the client has gone."""
        super().__init__()
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as held:
            response = await self._make(held, receive)
            await response(scope, receive, send)


def json_in_pieces(fields: Mapping[str, object], **long: Iterator[str]) -> Response:
    """A JSON object: of short values, and of long strings that come in pieces."""

    async def pieces() -> AsyncIterator[str]:
        head = json.dumps(fields, separators=(",", ":"), allow_nan=False)[:-1]
        for name, texts in long.items():
            yield f'{head}{"" if head == "{" else ","}{json.dumps(name)}:"'
            for text in texts:
                yield json.dumps(text)[1:-1]
            head = '"'
        yield head + "}"

    return StreamingResponse(pieces(), media_type="application/json")


def as_text(data: bytes, errors: str, *, is_whole: bool = True) -> Iterator[str]:
    """UTF-8 as text. If it is not the whole, half a character at its end is left out."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    for start in range(0, len(data), _PIECE):
        yield decoder.decode(data[start : start + _PIECE])
    yield decoder.decode(b"", final=is_whole)


def as_base64(data: bytes) -> Iterator[str]:
    """As base64 (RFC 4648, section 4)."""
    for start in range(0, len(data), _PIECE):
        yield base64.b64encode(data[start : start + _PIECE]).decode("ascii")
