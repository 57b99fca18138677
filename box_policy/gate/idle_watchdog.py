"""mitmproxy's watchdog over idle connections, on a clock that nobody sets."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from mitmproxy.proxy.server import TimeoutWatchdog


class IdleWatchdog(TimeoutWatchdog):
    """Calls back once nothing has moved for so many seconds.

    mitmproxy's own goes by the time of day: set back an hour, it keeps what is idle for an hour.
    """

    def __init__(self, timeout: int, callback: Callable[[], Awaitable[None]]) -> None:
        super().__init__(timeout, callback)
        self.register_activity()

    def register_activity(self) -> None:
        self.last_activity = time.monotonic()

    async def watch(self) -> None:
        try:
            while True:
                await self.can_timeout.wait()
                left = self.last_activity + self.timeout - time.monotonic()
                if left <= 0:
                    await self.callback()
                    return
                await asyncio.sleep(left)
        except asyncio.CancelledError:
            return
