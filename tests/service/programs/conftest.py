"""A box, and what a test runs in it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
import pytest_asyncio

from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces.box import NamespaceBox
from box_policy.service.programs.runs import run
from box_policy.service.programs.slots import Slots
from tests.sandbox.boxes import open_descriptors

PATIENCE = 20.0
CWD = "/workspace"
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": CWD}


def text(written: bytes) -> str:
    """What a program wrote."""
    return written.decode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher() -> AsyncIterator[NamespaceLauncher]:
    """A launcher; the tests are skipped, with the reason, on a machine that can't make boxes."""
    launcher = NamespaceLauncher()
    try:
        await (await launcher.create(BoxSpec("probe"))).close()
    except SandboxError as error:
        await launcher.close()
        pytest.skip(f"no boxes here: {error}")
    yield launcher
    await launcher.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(launcher: NamespaceLauncher) -> AsyncIterator[NamespaceBox]:
    """A box that the tests of a module share."""
    box = await launcher.create(BoxSpec("shared"))
    yield box
    await box.close()


@contextmanager
def nothing_left() -> Iterator[None]:
    """No descriptor and no task more than before."""
    tasks, descriptors = len(asyncio.all_tasks()), open_descriptors()
    yield
    assert len(asyncio.all_tasks()) <= tasks
    assert open_descriptors() <= descriptors


async def eventually_gone(box: NamespaceBox, marker: str) -> None:
    """Return once no process of the box has ``marker`` among its arguments."""
    # Read by the shell itself: whatever looked for it by name would find itself.
    script = (
        'for f in /proc/[0-9]*/cmdline; do [ "$f" = /proc/$$/cmdline ] && continue; '
        'tr "\\0" " " <$f 2>/dev/null; echo; done'
    )
    async with asyncio.timeout(PATIENCE):
        while True:
            found = await run(box, ["sh", "-c", script], cwd=CWD, env=ENVIRONMENT, slots=Slots())
            if marker not in text(found.stdout):
                return
