"""Launchers for tests, as the caller and, where the caller is root, as a user with a single id."""

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces import launcher as launcher_module
from box_policy.sandbox.namespaces.box import NamespaceBox

NOBODY = 65534

# The zygote of an ordinary user. A new interpreter might not be readable to that user (root's home is
# not), so everything is imported first and the user changed then, without another exec().
AS_NOBODY = f"""
import sys; sys.path.append(sys.argv[1])
import os, ctypes, encodings.utf_8, encodings.ascii
from box_policy.sandbox.namespaces import network_messages, zygote
os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which the change of user has cleared
zygote.main()
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test of a box runs as the caller; started by root, also as a user with one id."""
    if "user" in metafunc.fixturenames:
        users = ["caller"] + (["nobody"] if os.geteuid() == 0 else [])
        metafunc.parametrize("user", users, scope="module")


@pytest.fixture(scope="module")
def user() -> str:
    """Whose boxes these are; see ``pytest_generate_tests``."""
    raise NotImplementedError


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher(user: str) -> AsyncIterator[NamespaceLauncher]:
    """A launcher; the tests are skipped, with the reason, on a machine that can't make boxes."""
    with pytest.MonkeyPatch.context() as patch:
        if user == "nobody":
            patch.setattr(launcher_module, "_ZYGOTE_CODE", AS_NOBODY)
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


@pytest.fixture
def owned_directory(user: str, tmp_path: Path) -> Path:
    """A directory that belongs to the boxes' user, below directories that the user can pass."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory != Path("/") and os.access(directory, os.W_OK):
            with suppress(PermissionError):
                directory.chmod(directory.stat().st_mode | 0o011)
    owned = tmp_path / "owned"
    owned.mkdir()
    if user == "nobody":
        os.chown(owned, NOBODY, NOBODY)
    return owned
