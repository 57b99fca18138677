"""Both clients against a stub of the service, or against the service itself."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import box_policy
from box_policy.sdk import embedded
from tests.sdk.stub import KEY, Stub


@dataclass(frozen=True)
class Client:
    """One of the two clients. Tests are written once: ``await client(function, ...)`` calls either's."""

    Box: Any
    EphemeralBox: Any
    is_async: bool

    async def __call__(self, function: Any, *arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        return await result if inspect.isawaitable(result) else result

    async def enter(self, manager: Any) -> Any:
        return await self(manager.__aenter__ if self.is_async else manager.__enter__)

    async def leave(self, manager: Any, error: BaseException | None = None) -> Any:
        kind = None if error is None else type(error)
        return await self(manager.__aexit__ if self.is_async else manager.__exit__, kind, error, None)

    async def close(self, thing: Any) -> None:
        await self(thing.aclose if hasattr(thing, "aclose") else thing.close)

    async def all(self, stream: Any) -> list[Any]:
        return [chunk async for chunk in stream] if self.is_async else list(stream)

    async def first(self, stream: Any) -> Any:
        return await anext(aiter(stream)) if self.is_async else next(iter(stream))


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest) -> Client:
    if request.param == "sync":
        return Client(box_policy.Box, box_policy.EphemeralBox, is_async=False)
    return Client(box_policy.AsyncBox, box_policy.AsyncEphemeralBox, is_async=True)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BASE_URL", "API_KEY"):
        monkeypatch.delenv(f"BOX_POLICY_{name}", raising=False)
        monkeypatch.delenv(f"UPSTASH_BOX_{name}", raising=False)
    for name in ("BACKEND", "IMAGE"):
        monkeypatch.delenv(f"BOX_POLICY_{name}", raising=False)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """The stub, named in the environment."""
    stub = Stub()
    monkeypatch.setenv("BOX_POLICY_BASE_URL", stub.url)
    monkeypatch.setenv("BOX_POLICY_API_KEY", KEY)
    yield stub
    stub.close()


@pytest.fixture(scope="module")
def service() -> Iterator[embedded.Service]:
    """This process's own service."""
    yield embedded.current()
    embedded.end()
