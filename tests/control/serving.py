"""An endpoint on a real socket, in front of whatever app a test brings."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import httpx
from starlette.types import ASGIApp

from box_policy.control.endpoint import Bounds, Endpoint, ListeningAddress, TcpAddress, UnixAddress

TOKEN = "0123456789abcdef-token"
LOOPBACK = TcpAddress(ip_address("127.0.0.1"), 0)


@dataclass
class Served:
    """The endpoint while it serves."""

    endpoint: Endpoint

    @property
    def host(self) -> str:
        address = self.endpoint.address
        return str(address) if isinstance(address, TcpAddress) else "localhost"

    @property
    def connections(self) -> int:
        return len(self.endpoint._state.connections)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which the test itself speaks."""
        address = self.endpoint.address
        if isinstance(address, UnixAddress):
            return await asyncio.open_unix_connection(address.path)
        assert isinstance(address, TcpAddress)
        return await asyncio.open_connection(str(address.host), address.port)

    def client(self, **options: object) -> httpx.AsyncClient:
        address = self.endpoint.address
        uds = str(address.path) if isinstance(address, UnixAddress) else None
        transport = httpx.AsyncHTTPTransport(uds=uds)
        return httpx.AsyncClient(transport=transport, base_url=f"http://{self.host}", **options)  # type: ignore[arg-type]

    async def empty(self) -> None:
        """Wait until every connection is gone, and every request done with."""
        async with asyncio.timeout(10):
            while self.connections or self.endpoint._state.tasks:
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def serving(
    where: Path | ListeningAddress,
    app: ASGIApp,
    *,
    token: str | None = None,
    bounds: Bounds | None = None,
    websockets: bool = True,
    foreign: Callable[[int], bool] | None = None,
) -> AsyncIterator[Served]:
    """Serve an app, on a unix socket below a directory if no address is given."""
    address = UnixAddress(where / "s.sock") if isinstance(where, Path) else where
    endpoint = Endpoint(address, app, token=token, bounds=bounds, websockets=websockets, foreign=foreign)
    endpoint.start()
    task = asyncio.create_task(endpoint.serve())
    try:
        yield Served(endpoint)
    finally:
        await endpoint.close()
        await task
