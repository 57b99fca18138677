"""What the two clients do differently: each name here has a twin, of which one waits by ``await``."""

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any


class AsyncEvent:
    """Something that happens once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self, timeout: float | None) -> bool:  # noqa: ASYNC109 - its twin has it as well
        """Whether it has happened, after at most ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await self._event.wait()
        except TimeoutError:
            return False


class Event:
    """Something that happens once."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout: float | None) -> bool:
        """Whether it has happened, after at most ``timeout`` seconds."""
        return self._event.wait(timeout)


class AsyncReader:
    """Work that goes on beside the caller's, as a task."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._task = asyncio.create_task(work())

    def is_current(self) -> bool:
        """Whether the caller is this very work."""
        return asyncio.current_task() is self._task

    async def join(self, timeout: float) -> None:  # noqa: ASYNC109
        """Wait for its end, for at most ``timeout`` seconds."""
        await asyncio.wait([self._task], timeout=timeout)


class Reader:
    """Work that goes on beside the caller's, in a thread that doesn't keep the process alive."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, name="box-policy session", daemon=True)
        self._thread.start()

    def is_current(self) -> bool:
        """Whether the caller is this very work."""
        return threading.current_thread() is self._thread

    def join(self, timeout: float) -> None:
        """Wait for its end, for at most ``timeout`` seconds."""
        self._thread.join(timeout)


async def async_sleep(seconds: float) -> None:
    """Wait."""
    await asyncio.sleep(seconds)


def sleep(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


async def async_settled(result: object) -> None:
    """Await what a callback has answered, if that can be awaited."""
    if inspect.isawaitable(result):
        await result


def settled(result: object) -> None:
    """Refuse what a callback has answered, if that would have to be awaited."""
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError("the callback is a coroutine function; use AsyncBox, or a plain function")
