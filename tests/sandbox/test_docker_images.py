"""What an image makes of a Docker box, and a Docker box of an image."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import docker
import pytest
from docker.errors import NotFound

from box_policy.sandbox.docker import DockerLauncher
from box_policy.sandbox.launcher import (
    BoxSpec,
    ProgramNotFoundError,
    ProgramSpec,
    SandboxError,
)
from tests.containers.engine import IMAGE
from tests.sandbox.boxes import PATIENCE, new_box, run, shell

pytestmark = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def image(client: docker.DockerClient, *changes: str, script: str = "true") -> AsyncIterator[str]:
    """The tests' image, with what a program and instructions of a Dockerfile have changed in it."""
    container = await asyncio.to_thread(client.containers.run, IMAGE, ["sh", "-c", script], detach=True)
    container.wait()
    repository, tag = "box-policy-test/derived", secrets.token_hex(8)
    client.api.commit(str(container.id), repository, tag, changes=list(changes))
    container.remove()
    try:
        yield f"{repository}:{tag}"
    finally:
        client.images.remove(f"{repository}:{tag}")


async def test_a_user_of_the_images(docker_launcher: DockerLauncher, client: docker.DockerClient) -> None:
    script = "useradd -u 1234 -m -d /home/app -G tty app"
    async with image(client, "USER app", script=script) as name:
        spec = BoxSpec("user", image=name, directories=["/home/box/x"])
        async with new_box(docker_launcher, spec) as box:
            shown = await shell(box, "id -u; id -g; id -Gn; echo $HOME $USER; grep CapEff /proc/self/status")
            assert shown.output.split("\n")[:4] == ["1234", "1234", "app tty", "/home/app app"]
            assert shown.output.split()[-1] == "0000000000000000"
            assert (
                await shell(box, "touch /workspace/f /home/box/x/f && echo its own")
            ).output == "its own\n"
            await box.files.write("/workspace/g", b"")
            assert (await shell(box, "stat -c %u /workspace/g")).output == "1234\n"
            with pytest.raises(PermissionError):
                await box.files.write("/etc/passwd", b"")


async def test_a_user_that_the_image_does_not_have(
    docker_launcher: DockerLauncher, client: docker.DockerClient
) -> None:
    async with image(client, "USER stranger") as name:
        with pytest.raises(SandboxError, match="user 'stranger' is not in its /etc/passwd"):
            await docker_launcher.create(BoxSpec("user", image=name))


async def test_variables_of_the_images(docker_launcher: DockerLauncher, client: docker.DockerClient) -> None:
    async with image(client, "ENV PATH=/opt/x:/usr/bin", "ENV LANG=C", "ENV OWN=1") as name:  # noqa: SIM117
        async with new_box(docker_launcher, BoxSpec("env", image=name)) as box:
            shown = (await run(box, "env", env={"OWN": "2"})).output
            assert dict(line.split("=", 1) for line in shown.splitlines()) == {
                "PATH": "/opt/x:/usr/bin",
                "HOME": "/root",
                "USER": "root",
                "LANG": "C",
                "OWN": "2",
            }


async def test_an_image_puts_nothing_into_the_first_process(
    docker_launcher: DockerLauncher, client: docker.DockerClient
) -> None:
    script = (
        "ls /usr/lib/*/libz.so.1 > /etc/ld.so.preload; cp /usr/lib/*/libz.so.1 /lib/evil.so;"
        "mkdir -p /evil /.box-policy/lib; cp /lib/evil.so /evil/libc.so.6; cp /lib/evil.so /.box-policy/lib"
    )
    changes = (
        "ENV LD_LIBRARY_PATH=/evil",
        "ENV LD_PRELOAD=/lib/evil.so",
        "ENV PYTHONHOME=/evil",
        "HEALTHCHECK --interval=1s CMD touch /tmp/healthy",
        'ENTRYPOINT ["/bin/false"]',
    )
    async with image(client, *changes, script=script) as name:  # noqa: SIM117
        async with new_box(docker_launcher, BoxSpec("evil", image=name)) as box:
            info = client.api.inspect_container(box.container)
            assert info["Config"]["Healthcheck"]["Test"] == ["NONE"]
            first = Path(f"/proc/{info['State']['Pid']}")
            assert first.joinpath("comm").read_text() == "box-init\n"
            assert "evil" not in first.joinpath("environ").read_text()
            mapped = [line.split(maxsplit=5)[5:] for line in first.joinpath("maps").read_text().splitlines()]
            loaded = {path[0] for path in mapped if path and path[0].startswith("/")}
            assert any("libpython" in path or "python3" in path for path in loaded)
            assert not [path for path in loaded if "libz" in path or "evil" in path]


async def test_an_image_with_nothing_in_it(
    docker_launcher: DockerLauncher, client: docker.DockerClient
) -> None:
    empty = client.api.import_image_from_data(bytes(10240), repository="box-policy-test/empty")
    assert "sha256" in empty
    async with new_box(docker_launcher, BoxSpec("empty", image="box-policy-test/empty")) as box:
        with pytest.raises(ProgramNotFoundError, match="no such program"):
            await box.start(ProgramSpec(["sh"]))
        await box.files.write("/workspace/a/b", b"files need nothing of it")
        assert await box.files.read("/workspace/a/b", limit=99) == b"files need nothing of it"
        assert (await run(box, "/.box-policy/ld.so", "--version")).status == 0
    client.images.remove("box-policy-test/empty")


async def test_an_image_of_a_box(docker_launcher: DockerLauncher, client: docker.DockerClient) -> None:
    async with image(client, "USER 1000", "ENV OWN=1", "WORKDIR /opt", 'CMD ["bash"]') as base:
        async with new_box(docker_launcher, BoxSpec("first", image=base)) as first:
            await first.files.write("/workspace/file", b"kept")
            made = await first.commit(labels={"box-policy.snapshot": "ephemeral"})
            assert (await shell(first, "echo on")).output == "on\n"
            await first.pause()
            paused = await first.commit(labels={})
            await docker_launcher.remove_image(paused)
            await first.resume()
        assert await docker_launcher.has_image(made)
        config = client.images.get(made).attrs["Config"]
        assert (config["User"], config["WorkingDir"], config["Cmd"]) == ("1000", "/opt", ["bash"])
        assert not config["Entrypoint"]
        assert "OWN=1" in config["Env"]
        assert config["Labels"]["box-policy.snapshot"] == "ephemeral"
        async with new_box(docker_launcher, BoxSpec("second", image=made)) as second:
            assert (await shell(second, "cat /workspace/file; echo $OWN; id -u")).output == "kept1\n1000\n"
            assert (await shell(second, "ls -A /.box-policy-socket")).output == ""
            later = await second.commit(labels={})
            await docker_launcher.remove_image(made)
            assert not await docker_launcher.has_image(made)
            assert client.images.get(made)  # the box is made of it
        async with new_box(docker_launcher, BoxSpec("third", image=later)) as third:
            assert (await shell(third, "cat /workspace/file")).output == "kept"
            await docker_launcher.remove_image(later)
            await docker_launcher.remove_image(later)
        async with asyncio.timeout(PATIENCE):
            while await is_there(client, later) or await is_there(client, made):
                await asyncio.sleep(0.02)  # the engine tells nobody


async def is_there(client: docker.DockerClient, image_id: str) -> bool:
    try:
        await asyncio.to_thread(client.images.get, image_id)
    except NotFound:
        return False
    return True


async def test_an_image_is_not_made_of_a_box_that_has_ended(docker_launcher: DockerLauncher) -> None:
    box = await docker_launcher.create(BoxSpec("ended"))
    await box.close()
    with pytest.raises(SandboxError, match="ended"):
        await box.commit(labels={})
