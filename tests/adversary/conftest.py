"""Arenas: one a module, shared by its tests, or one of the test's own."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher
from tests.adversary.arena import Arena
from tests.adversary.attacker import interpreter
from tests.lab import Lab


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher() -> AsyncIterator[NamespaceLauncher]:
    """A launcher; the tests are skipped, with the reason, on a machine that can't make boxes."""
    if interpreter() is None:
        pytest.skip("no python3 in a system directory, so none in a box")
    launcher = NamespaceLauncher()
    try:
        await (await launcher.create(BoxSpec("probe"))).close()
    except SandboxError as error:
        await launcher.close()
        pytest.skip(f"no boxes here: {error}")
    yield launcher
    await launcher.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arena(running_lab: Lab, launcher: NamespaceLauncher) -> AsyncIterator[Arena]:
    """A gate with the limits that operators get, and a box for each policy."""
    arena = await Arena.open(running_lab, launcher)
    yield arena
    await arena.close()


type OpenArena = Callable[..., Awaitable[Arena]]


@pytest_asyncio.fixture(loop_scope="module")
async def open_arena(lab: Lab, launcher: NamespaceLauncher) -> AsyncIterator[OpenArena]:
    """Makes gates of a test's own, with limits and settings of its choice."""
    arenas: list[Arena] = []

    async def open_one(**settings: object) -> Arena:
        arenas.append(await Arena.open(lab, launcher, **settings))  # type: ignore[arg-type]
        return arenas[-1]

    yield open_one
    for arena in arenas:
        await arena.close()
