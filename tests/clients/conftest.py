"""The hosted product's own clients, unmodified, and a service whose address they are told."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import upstash_box

from tests.lab import Lab
from tests.service.conftest import Server

type Make = Callable[..., Awaitable[Any]]

TIMEOUT = 20.0
"""Seconds for what happens in a fraction of one."""

CURL = "curl -sS --max-time 10 --cacert ca.pem"
"""In a box that has the certificate of the lab's authority."""


@pytest.fixture(scope="session")
def running_service(running_lab: Lab) -> Iterator[Server]:
    """The one service of these tests, with the lab's name server. Tests take ``service``."""
    with Server("--name-server", running_lab.nameserver) as server:
        answer = server.ask("POST", "", {})
        if answer.status == 500:
            pytest.skip(f"no boxes here: {answer.error}")
        yield server


@pytest.fixture
def service(lab: Lab, running_service: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A service without boxes, where clients find it: in their environment."""
    monkeypatch.setenv("UPSTASH_BOX_BASE_URL", running_service.url)
    monkeypatch.setenv("UPSTASH_BOX_API_KEY", running_service.key)
    # The clients load every authority anew for each box, which takes longer than making it.
    monkeypatch.setenv("SSL_CERT_FILE", str(lab.ca_pem))
    running_service.delete_all()
    yield running_service
    running_service.delete_all()
    running_service.ask("PUT", "/settings/env", {"env_vars": {}}).ok()


@dataclass(frozen=True)
class Client:
    """One of the two Python clients. Called with what a method returned, it gives the answer."""

    Box: Any
    EphemeralBox: Any

    async def __call__(self, answer: Any) -> Any:
        return await answer if inspect.isawaitable(answer) else answer

    async def each(self, items: Any) -> list[Any]:
        """What an iterable holds."""
        if hasattr(items, "__aiter__"):
            return [item async for item in items]
        return list(items)

    async def ended(self, session: Any) -> int:
        """Wait for a session's end, though not for ever, should there be none."""
        if inspect.iscoroutinefunction(session.wait):
            return int(await asyncio.wait_for(session.wait(), TIMEOUT))
        return int(session.wait(TIMEOUT))

    async def close(self, box: Any) -> None:
        """Let go of a box's connections."""
        await self(box.aclose() if hasattr(box, "aclose") else box.close())


CLIENTS = {
    "sync": Client(upstash_box.Box, upstash_box.EphemeralBox),
    "async": Client(upstash_box.AsyncBox, upstash_box.AsyncEphemeralBox),
}


@pytest.fixture(params=CLIENTS)
def client(service: Server, request: pytest.FixtureRequest) -> Client:
    """Each of the two clients."""
    return CLIENTS[request.param]


@pytest.fixture
async def make(client: Client, lab: Lab) -> AsyncIterator[Make]:
    """Makes boxes that trust the lab's authority: by ``Box.create``, or by what is given as ``by``."""
    boxes = []

    async def make(*arguments: object, by: Callable[..., Any] | None = None, **config: Any) -> Any:
        box = await client((by or client.Box.create)(*arguments, **config))
        boxes.append(box)
        await client(box.files.write(path="/workspace/home/ca.pem", content=lab.ca_pem.read_text()))
        return box

    yield make
    for box in boxes:
        await client.close(box)
