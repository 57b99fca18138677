"""Launchers for tests: of namespaces, as the caller and, where that is root, as a user with a single id; and,
for what boxes of all kinds have in common, of a container engine."""

import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import docker
import pytest
import pytest_asyncio

from box_policy.sandbox.docker import DockerLauncher
from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces import launcher as launcher_module
from box_policy.sandbox.namespaces.served_box import ServedBox
from tests.containers.engine import IMAGE, engine_address

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


DOCKER = "docker"
OF_ALL_BACKENDS = (
    "archive",
    "files",
    "files_hostile",
    "isolation",
    "network",
    "pause",
    "programs",
    "seccomp",
)
"""The modules whose subject is what a box is, whoever makes it."""


def pytest_configure(config: pytest.Config) -> None:
    """Markers of these tests."""
    config.addinivalue_line("markers", "of_namespaces: the subject is what only boxes of namespaces have")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test of a box runs as the caller; started by root, also as a user with one id; and with Docker."""
    if "user" not in metafunc.fixturenames:
        return
    users = ["caller"] + (["nobody"] if os.geteuid() == 0 else [])
    module = metafunc.module.__name__.rpartition(".test_")[2]
    if module in OF_ALL_BACKENDS and metafunc.definition.get_closest_marker("of_namespaces") is None:
        users.append(DOCKER)
    metafunc.parametrize("user", users, scope="module")


@pytest.fixture(scope="module")
def user() -> str:
    """Whose boxes these are; see ``pytest_generate_tests``."""
    raise NotImplementedError


type AnyLauncher = NamespaceLauncher | DockerLauncher


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher(user: str) -> AsyncIterator[AnyLauncher]:
    """A launcher; the tests are skipped, with the reason, on a machine that can't make boxes."""
    if user == DOCKER:
        of_docker = DockerLauncher(IMAGE, engine_address())
        yield of_docker
        await of_docker.close()
        return
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
async def box(launcher: AnyLauncher) -> AsyncIterator[ServedBox]:
    """A box that the tests of a module share."""
    box = await launcher.create(BoxSpec("shared"))
    yield box
    await box.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def docker_launcher() -> AsyncIterator[DockerLauncher]:
    """A launcher of Docker boxes."""
    launcher = DockerLauncher(IMAGE, engine_address())
    yield launcher
    await launcher.close()


@pytest.fixture(scope="module")
def client() -> docker.DockerClient:
    """The engine, as any other program of its user's has it."""
    return docker.DockerClient(engine_address())


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
