"""HTTP clients, each where it may be used: in its event loop, or in its process."""

import asyncio
import os
import threading
import weakref
from collections.abc import Callable

import httpx


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
