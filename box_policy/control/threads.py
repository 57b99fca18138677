"""Work that would hold up the loop, in a thread that nobody waits for when the process ends."""

import asyncio
import contextlib
import threading
from collections.abc import Callable


async def in_thread[**Given, Result](
    work: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
) -> Result:
    """What ``work`` returns, or raises.

    In a daemon thread: those of asyncio's executor are waited for at the process's end, however long.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        try:
            result = work(*args, **kwargs)
        except BaseException as error:
            _tell(loop, _fail, done, error)
        else:
            _tell(loop, _succeed, done, result)

    threading.Thread(target=run, name="box-policy control", daemon=True).start()
    return await done


def _tell[*Given](loop: asyncio.AbstractEventLoop, call: Callable[[*Given], None], *args: *Given) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
        loop.call_soon_threadsafe(call, *args)


def _succeed[Result](done: asyncio.Future[Result], result: Result) -> None:
    if not done.done():
        done.set_result(result)


def _fail[Result](done: asyncio.Future[Result], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
