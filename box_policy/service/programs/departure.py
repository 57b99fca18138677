"""A client that goes away takes with it what was being done for it."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive


class ClientGoneError(Exception):
    """The client closed its connection before its answer was there. There is nobody to tell."""


async def while_connected[T](receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do something for as long as the client is there. To be called once the request's body has been read.

    Raises:
        ClientGoneError: it went. The work is cancelled, and has ended.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_departure(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        is_done = working.done()
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)
    if not is_done and working.cancelled():
        raise ClientGoneError("the client has closed its connection")
    return working.result()


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # what is left of a body is nobody's
