"""Boxes of namespaces, started within a container: with the options that the error message asks for."""

import docker
import pytest

pytest_plugins = ["tests.containers.fixtures"]

SYSTEM_PATHS: dict[str, object] = {"MaskedPaths": [], "ReadonlyPaths": []}
"""What ``--security-opt systempaths=unconfined`` is in the engine's API."""


def run(client: docker.DockerClient, image: str, user: str, *options: str, **host: object) -> tuple[int, str]:
    """Run a program in a box in a container: the exit status, and all output."""
    confinement = client.api.create_host_config(network_mode="none", security_opt=list(options))
    container = client.api.create_container(
        image, ["run", "--", "sh", "-c", "id -u; touch here; ls"], entrypoint="box-policy", user=user,
        environment={"HOME": "/tmp"}, host_config={**confinement, **host},
    )["Id"]  # fmt: skip
    try:
        client.api.start(container)
        status = client.api.wait(container, timeout=60)["StatusCode"]
        return status, client.api.logs(container).decode()
    finally:
        client.api.remove_container(container, force=True)


@pytest.mark.parametrize("user", ["0:0", "1000:1000"])
def test_a_box(docker_client: docker.DockerClient, gate_image: str, user: str) -> None:
    done = run(docker_client, gate_image, user, "seccomp=unconfined", **SYSTEM_PATHS)
    assert done == (0, "0\nhere\n")


def test_without_them_the_message_names_them(docker_client: docker.DockerClient, gate_image: str) -> None:
    status, output = run(docker_client, gate_image, "0:0")
    assert status == 1
    assert "--security-opt seccomp=unconfined --security-opt systempaths=unconfined" in output
