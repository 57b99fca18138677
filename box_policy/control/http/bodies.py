"""Reads the bodies of requests, within bounds of size and time, and does the work that they make."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from starlette.requests import ClientDisconnect, Request

from box_policy.control.http.answers import ApiError
from box_policy.control.http.json_text import MAX_STRING, InvalidBody, parse_json
from box_policy.control.threads import in_thread
from box_policy.policy.quoting import quoted

MAX_BODY: Final = 8 * 1024 * 1024
"""Bytes; as of a policy document in a file."""
BODY_TIMEOUT: Final = 10.0
"""Seconds for a whole body, however it trickles in, and for its turn if it is large."""

_INLINE: Final = 4 * 1024
"""Bytes of a body that is worked on by the loop; larger ones are in a thread."""
_LARGE: Final = 64 * 1024
"""Bytes of a body of which there is only one at a time."""
_MAX_DIGITS: Final = 19

_UNHEARD: Final = ("If-None-Match", "If-Modified-Since", "If-Unmodified-Since")
_MEDIA_TYPE: Final = re.compile(r'application/json[ \t]*(?:;[ \t]*charset="?utf-8"?[ \t]*)?', re.IGNORECASE)
_ENTITY_TAG: Final = re.compile(r'"(?P<tag>[0-9]{1,18})"|(?P<bare>[0-9]{1,18})')


@dataclass(frozen=True)
class Body:
    """What a request's body holds, and where it is worked on."""

    value: object
    request: Request
    lane: asyncio.Semaphore | None
    """For work in a thread; None if the loop does it, or if the body has the lane already."""
    in_thread: bool

    async def work[**Given, Result](
        self, job: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """What a job that takes as long as the body is large returns, or raises.

        Raises:
            ClientDisconnect: the client has gone away: nobody waits for the result.
        """
        if not self.in_thread:
            return job(*args, **kwargs)
        async with AsyncExitStack() as stack:
            if self.lane is not None:
                await stack.enter_async_context(self.lane)
            await self._check_client()
            result = await in_thread(job, *args, **kwargs)
        await self._check_client()
        return result

    async def _check_client(self) -> None:
        if await self.request.is_disconnected():
            raise ClientDisconnect


@dataclass(frozen=True)
class Bodies:
    """Reads the bodies for one endpoint.

    Threads share one interpreter, and the loop with them: so no more than two bodies are worked on at a
    time, a large one and one of middle size.
    """

    within: float = BODY_TIMEOUT
    """Seconds for a body to be there, and for a large one to have its turn."""
    max_string: int = MAX_STRING
    """Characters of a string in a body."""
    _large: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    _middle: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    @asynccontextmanager
    async def read(self, request: Request, *, max_body: int = MAX_BODY) -> AsyncIterator[Body]:
        """The value in the request's body. A large body has its turn until the context ends.

        Args:
            max_body: bytes that it may have.

        Raises:
            ApiError: there is none, or it breaks a bound.
            ClientDisconnect: the client went away before the end.
        """
        _check_head(request)
        async with AsyncExitStack() as stack:
            content, has_lane = await self._receive(request, stack, max_body)
            lane = None if has_lane else self._middle
            raw = Body(content, request, lane, in_thread=len(content) > _INLINE)
            try:
                value = await raw.work(parse_json, content, self.max_string)
            except InvalidBody as error:
                raise ApiError("body_invalid", f"the body is not acceptable JSON: {error}") from None
            body = Body(value, request, lane, in_thread=raw.in_thread)
            del content, raw, value  # megabytes
            yield body

    async def _receive(self, request: Request, stack: AsyncExitStack, max_body: int) -> tuple[bytes, bool]:
        too_large = body_too_large(max_body)
        if announced_size(request) > max_body:
            raise too_large
        body = bytearray()
        has_lane = waiting = False
        try:
            async with asyncio.timeout(self.within):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > max_body:
                        raise too_large
                    if len(body) > _LARGE and not has_lane:
                        # Before more of it is taken in: of many such bodies the memory holds one.
                        waiting = True
                        await stack.enter_async_context(self._large)
                        waiting, has_lane = False, True
        except TimeoutError:
            if waiting:
                message = f"other large bodies were worked on for {self.within:g} seconds; try again"
                raise ApiError("busy", message, headers={"retry-after": "10"}) from None
            raise ApiError("body_timeout", f"the body was not here within {self.within:g} seconds") from None
        return bytes(body), has_lane


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


def body_too_large(max_body: int) -> ApiError:
    """What is said of a body that has more bytes than it may."""
    size = f"{max_body // 1024 // 1024} MiB" if max_body >= 1024 * 1024 else f"{max_body} bytes"
    return ApiError("body_too_large", f"a body has at most {size} here")


def announced_size(request: Request) -> float:
    """The bytes that a request says its body has; 0 if it doesn't say."""
    # As text: an announced length may be far larger than what Python would convert.
    announced = request.headers.get("content-length", "0").lstrip("0")
    return math.inf if len(announced) > _MAX_DIGITS else int(announced or 0)


def _check_head(request: Request) -> None:
    """See that the request says nothing that would be left unheard: it means what the author thinks."""
    if request.scope["query_string"]:
        raise ApiError("query_invalid", "there is nothing to ask in the query here: leave it out")
    for name in _UNHEARD:
        if name in request.headers:
            raise ApiError("precondition_invalid", f"{name} means nothing here; If-Match does, with PUT")
    if "content-range" in request.headers:  # RFC 9110, section 14.5
        raise ApiError("body_invalid", "a part can't be put: leave out Content-Range, and send the whole")
    types = request.headers.getlist("content-type")
    if len(types) != 1 or not _MEDIA_TYPE.fullmatch(types[0].strip()):
        raise ApiError("media_type_unsupported", "send the body as Content-Type: application/json")
    encodings = request.headers.getlist("content-encoding")
    if any(encoding.strip().lower() != "identity" for encoding in encodings):
        raise ApiError("media_type_unsupported", "send the body without a Content-Encoding")
