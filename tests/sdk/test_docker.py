"""Boxes of container images: which service they are asked of, and what it makes of a real engine."""

from collections.abc import Iterator
from typing import Any

import pytest

from box_policy import AsyncBox, AsyncEphemeralBox, Box, BoxError, EphemeralBox
from box_policy.sdk import embedded
from tests.containers.engine import IMAGE, engine
from tests.sdk.conftest import Client
from tests.sdk.stub import KEY, Stub


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends whose service was asked for. None is started."""
    backends: list[str] = []

    def current(backend: str) -> Any:
        backends.append(backend)
        raise BoxError("not in this test")

    monkeypatch.setattr(embedded, "current", current)
    return backends


@pytest.mark.parametrize(
    ("options", "variables", "expected"),
    [
        ({}, {}, "namespaces"),
        ({"backend": "docker"}, {}, "docker"),
        ({"image": "python:3.13"}, {}, "docker"),
        ({"backend": "docker", "image": "python:3.13"}, {}, "docker"),
        ({}, {"BACKEND": "docker"}, "docker"),
        ({}, {"IMAGE": "python:3.13"}, "docker"),
        ({}, {"BACKEND": "namespaces", "IMAGE": "python:3.13"}, "namespaces"),
        ({"backend": "namespaces"}, {"BACKEND": "docker", "IMAGE": "python:3.13"}, "namespaces"),
        ({"backend": None, "image": None}, {"BACKEND": ""}, "namespaces"),
    ],
)
async def test_which_service(
    client: Client,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    variables: dict[str, str],
    expected: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"BOX_POLICY_{name}", value)
    with pytest.raises(BoxError, match="not in this test"):
        await client(client.Box.create, **options)
    if "image" not in options:
        with pytest.raises(BoxError, match="not in this test"):
            await client(client.Box.get, "box", **options)
    assert set(asked) == {expected}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "namespaces", "image": "x"}, "image= takes backend='docker'"),
        ({"backend": "podman"}, "backend is one of namespaces, docker; not 'podman'"),
        ({"backend": ["docker"]}, "backend is one of"),
        ({"image": b"python"}, "image is a string"),
        ({"backend": "docker", "base_url": "http://127.0.0.1:1", "api_key": "k"}, "its operator has decided"),
    ],
)
async def test_what_does_not_fit(
    client: Client, asked: list[str], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(BoxError, match=said):
        await client(client.Box.create, **options)
    assert asked == []


def test_a_variable_that_names_no_backend(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOX_POLICY_BACKEND", "podman")
    with pytest.raises(BoxError, match="BOX_POLICY_BACKEND: backend is one of"):
        Box.list()


async def test_an_image_is_asked_of_a_service_by_its_name(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create, image="python:3.13", api_key=KEY)
    assert stub.asked[0].body["image"] == "python:3.13"
    await client.close(box)


class TestARealEngine:
    @pytest.fixture(autouse=True)
    def own_services(self, require_lab: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("DOCKER_HOST", engine().address)
        yield
        embedded.end()

    async def test_boxes_of_an_image(self) -> None:
        box = await AsyncBox.create(image=IMAGE, network_policy="deny-all", timeout=60_000)
        assert (await box.exec.command("echo $PATH; pwd")).stdout == (
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n/workspace/home\n"
        )
        assert await AsyncBox.list(backend="namespaces") == [], "another service"
        found = await AsyncBox.get(box.id, backend="docker")
        (listed,) = await AsyncBox.list(backend="docker")
        assert (found.id, listed.id, listed.image) == (box.id, box.id, IMAGE)
        await box.exec.command("echo tool > /usr/local/tool")
        taken = await box.snapshot(name="one")
        again = await AsyncEphemeralBox.from_snapshot(taken.id, backend="docker", ttl=60)
        assert (await again.exec.command("cat /usr/local/tool")).stdout == "tool\n"
        assert again.network_policy == {"mode": "deny-all"}
        with pytest.raises(BoxError, match="no image is the default here: name one"):
            await AsyncBox.create(backend="docker")

    def test_by_the_environment_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BOX_POLICY_IMAGE", IMAGE)
        with EphemeralBox.create(ttl=60, timeout=60_000) as box:
            assert (box.exec.command(". /etc/os-release; echo $ID")).stdout == "debian\n"
            (listed,) = Box.list()
            assert (listed.id, listed.image) == (box.id, IMAGE)

    def test_without_an_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
        with pytest.raises(BoxError, match="the Docker engine can't be reached"):
            Box.create(image=IMAGE, timeout=60_000)
