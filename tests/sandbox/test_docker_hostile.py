"""What programs and images do to take pid 1, or more than a box's own places."""

import io
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest

from box_policy.sandbox.docker import DockerLauncher, door, identity, reap
from box_policy.sandbox.launcher import BoxSpec, ProgramRefusedError, SandboxError
from tests.containers.engine import IMAGE, engine_address
from tests.sandbox.boxes import new_box, shell

pytestmark = pytest.mark.asyncio(loop_scope="module")


@contextmanager
def image_with(
    client: docker.DockerClient, changes: Sequence[str] = (), links: dict[str, str] | None = None
) -> Iterator[str]:
    """An image made of the usual one; its id."""
    made = client.api.create_container(IMAGE, ["true"])["Id"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, target in (links or {}).items():
            entry = tarfile.TarInfo(path.strip("/"))
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    client.api.put_archive(made, "/", buffer.getvalue())
    image = str(client.api.commit(made, changes=list(changes))["Id"])
    client.api.remove_container(made)
    try:
        yield image
    finally:
        client.api.remove_image(image, force=True)


@pytest.mark.parametrize("place", ["/proc/self/mem", "/proc/self/maps", "/dev/zero"])
async def test_nothing_but_the_null_device_is_handed_out_in_its_place(
    docker_launcher: DockerLauncher, place: str
) -> None:
    async with new_box(docker_launcher) as box:
        assert (await shell(box, f"rm /dev/null && ln -s {place} /dev/null")).status == 0
        with pytest.raises(ProgramRefusedError):
            await shell(box, "readlink /proc/self/fd/0")


@pytest.mark.parametrize(
    "path", ["/.box-policy/lib", "/.box-policy-socket/x", "/dev", "/proc/x", "/alias/lib"]
)
async def test_an_image_has_no_volume_where_a_box_has_what_is_its_own(
    client: docker.DockerClient, docker_launcher: DockerLauncher, path: str
) -> None:
    with (
        image_with(client, [f"VOLUME {path}"], {"/alias": "/.box-policy"}) as image,
        pytest.raises(SandboxError, match="volume"),
    ):
        await docker_launcher.create(BoxSpec("test", image=image))


@pytest.mark.parametrize("target", ["/dev", "/etc", "/.box-policy"])
async def test_an_image_does_not_lead_the_work_directory_elsewhere(
    client: docker.DockerClient, docker_launcher: DockerLauncher, tmp_path: Path, target: str
) -> None:
    (tmp_path / "ptmx").write_text("mine")
    with (
        image_with(client, links={"/workspace": target}) as image,
        pytest.raises(SandboxError, match="is a link to"),
    ):
        await docker_launcher.create(BoxSpec("test", image=image, workdir=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["ptmx"]


async def test_a_container_is_not_taken_for_a_box_by_the_labels_of_its_image(
    client: docker.DockerClient,
) -> None:
    with image_with(client, [f"LABEL {identity.LAUNCHER}=another/1/1/1"]) as image:
        container = client.containers.run(image, ["sleep", "1000"], detach=True)
        try:
            await reap(engine_address())
            container.reload()
            assert container.status == "running"
        finally:
            container.remove(force=True)


async def test_a_running_box_of_another_machine_is_left_alone(
    docker_launcher: DockerLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(identity, "boot", lambda: "another-machine")
        box = await docker_launcher.create(BoxSpec("test"))
    try:
        await reap(engine_address())
        assert (await shell(box, "true")).status == 0
    finally:
        await box.close()


async def test_an_image_that_was_not_made_of_a_box_is_not_removed(
    client: docker.DockerClient, docker_launcher: DockerLauncher
) -> None:
    with image_with(client) as image:
        await docker_launcher.remove_image(image)
        assert client.images.get(image).id == image


@pytest.mark.parametrize("pid", ["\u00b2", "9" * 200])
async def test_a_name_that_is_no_launcher_hinders_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pid: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    namespace, _, _ = identity.own_process()
    (tmp_path / f"box-policy-doors-{namespace}-{pid}-1-x").mkdir()
    assert door.remove_left() == []
