"""Work beside the event loop that nobody waits for when the process ends."""

import asyncio
import contextlib
import threading
from collections.abc import Callable


async def in_daemon_thread[**Arguments, Result](
    work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """What a function returns, or raises, that is called in a thread of its own.

    Not asyncio.to_thread: its threads are joined at the end, and a large policy is parsed for seconds.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def tell(result: Result | None, error: BaseException | None) -> None:
        if future.done():
            return  # cancelled
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        result: Result | None = None
        failed: BaseException | None = None
        try:
            result = work(*args, **kwargs)
        except BaseException as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result, failed)

    threading.Thread(target=run, name="policy files", daemon=True).start()
    return await future
