"""What the tests of the image share: the image itself, the world around the engine, and its containers."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Final

import docker
import pytest
from docker.errors import BuildError

from tests.containers.engine import Engine
from tests.containers.pod import REPOSITORY, PodMaker
from tests.containers.wheels import wheels
from tests.containers.world import world as start_world
from tests.lab import Lab, LabUnavailable

IMAGE: Final = "box-policy-test/gate"
_SOURCES: Final = ("Dockerfile", "LICENSE", "README.md", "pyproject.toml")


@pytest.fixture(scope="session")
def docker_client(docker_engine: Engine) -> Iterator[docker.DockerClient]:
    """The engine's API."""
    with contextlib.closing(docker_engine.client()) as client:
        yield client


@pytest.fixture(scope="session")
def gate_image(
    docker_engine: Engine, docker_client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The gate's image, built without a network."""
    if not wheels().exists():
        pytest.skip("the wheels for the image are missing: make test fetches them")
    context = tmp_path_factory.mktemp("context")
    for name in _SOURCES:
        shutil.copy(REPOSITORY / name, context)
    shutil.copytree(
        REPOSITORY / "box_policy", context / "box_policy", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(wheels(), context / "wheels")
    arguments = {"BASE": docker_engine.image, "PIP_NO_INDEX": "1"}
    try:
        docker_client.images.build(
            path=str(context), tag=IMAGE, buildargs=arguments, network_mode="none", rm=True, forcerm=True
        )
    except BuildError as error:
        output = "".join(str(line.get("stream", line.get("error", ""))) for line in error.build_log)
        pytest.fail(f"the image can't be built: {output[-3000:]}", pytrace=False)
    return IMAGE


@pytest.fixture(scope="session")
def running_world(docker_engine: Engine) -> Iterator[Lab]:
    """The one origin beyond the engine. Tests take ``world``."""
    try:
        with start_world(docker_engine) as lab:
            yield lab
    except LabUnavailable as error:
        pytest.skip(f"no test network: {error}")


@pytest.fixture
def world(running_world: Lab) -> Iterator[Lab]:
    """The world beyond the engine: no records, the default zone, no connection of another test's."""
    running_world.reset()
    yield running_world
    assert running_world.faults() == [], "the origin itself has failed during this test"


@pytest.fixture(scope="module")
def make_pod(
    docker_engine: Engine,
    docker_client: docker.DockerClient,
    gate_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[PodMaker]:
    """Makes pods, and removes them at the end."""
    directory = tmp_path_factory.mktemp("pods")
    with PodMaker(docker_client, gate_image, docker_engine.image, directory) as maker:
        yield maker
