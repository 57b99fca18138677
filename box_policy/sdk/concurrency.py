"""What the two clients do differently: each name here has a twin, of which one waits by ``await``."""

import asyncio
import inspect
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import httpx

from box_policy.policy.model import NetworkPolicy as PolicyModel
from box_policy.sdk import policies
from box_policy.sdk.types import NetworkPolicy


class AsyncClients:
    """An HTTP client for each event loop: its connections belong to that loop."""

    def __init__(self, make: Callable[[], httpx.AsyncClient]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )

    def get(self) -> httpx.AsyncClient:
        """The running loop's."""
        loop = asyncio.get_running_loop()
        with self._lock:
            client = self._clients.get(loop)
            if client is None:
                client = self._clients[loop] = self._make()
            return client

    async def aclose(self) -> None:
        """Close them all; those of loops that run no more are left to the garbage collector."""
        with self._lock:
            clients = list(self._clients.items())
            self._clients.clear()
        for loop, client in clients:
            if loop is asyncio.get_running_loop():
                await client.aclose()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(client.aclose(), loop)


class Clients:
    """An HTTP client for each process: a forked child would mix its requests with its parent's."""

    def __init__(self, make: Callable[[], httpx.Client]) -> None:
        self._make = make
        self._of_process: tuple[int, httpx.Client] | None = None
        self._lock = threading.Lock()

    def get(self) -> httpx.Client:
        """This process's. Any thread may use it."""
        pid = os.getpid()
        found = self._of_process
        if found is not None and found[0] == pid:
            return found[1]
        if found is not None:
            # Another thread of the parent may have held the lock when this process was forked.
            self._lock = threading.Lock()
        with self._lock:
            if self._of_process is None or self._of_process[0] != pid:
                self._of_process = pid, self._make()
            return self._of_process[1]

    def close(self) -> None:
        """Close it."""
        found = self._of_process
        if found is not None and found[0] == os.getpid():
            found[1].close()


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


class AsyncPolicyView:
    """What the property ``network_policy`` shows: a property can't await, so what the service last said."""

    last_said: PolicyModel

    def shown(self) -> NetworkPolicy:
        """A fresh copy of it."""
        return policies.shown(self.last_said)


class PolicyView:
    """What the property ``network_policy`` shows: what the service says at that moment."""

    last_said: PolicyModel

    def shown(self) -> NetworkPolicy:
        """Ask, and show a fresh copy."""
        return self.refresh()

    def refresh(self) -> NetworkPolicy:
        """Ask the service."""
        raise NotImplementedError
