"""What is left of Docker boxes when their launcher dies, and what removes the rest."""

import asyncio
import contextlib
import signal
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import docker
import pytest
from docker.errors import NotFound
from docker.types import Mount

from box_policy.sandbox.docker import DockerLauncher, identity, reap, reaper, runtime
from box_policy.sandbox.launcher import BoxSpec, SandboxError
from tests.containers.engine import IMAGE, engine_address
from tests.sandbox.boxes import PATIENCE, shell

_PACKAGE_PARENT = str(Path(__file__).parents[2])
LAUNCHER = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from box_policy.sandbox.docker import DockerLauncher
from box_policy.sandbox.launcher import BoxSpec, ProgramSpec
async def main():
    launcher = DockerLauncher(sys.argv[2], sys.argv[3])
    box = await launcher.create(BoxSpec("orphan"))
    await box.start(ProgramSpec(["sh", "-c", "trap '' HUP TERM INT; setsid -f sleep 1000; sleep 1000"]))
    if sys.argv[4] == "commit":
        print(await box.commit(labels={"box-policy.snapshot": "ephemeral"}), flush=True)
    if sys.argv[4] == "pause":
        await box.pause()
    print(box.container, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@asynccontextmanager
async def launcher_process(act: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[str]]]:
    """A process with a box, and what it says: the container's id last."""
    arguments = (_PACKAGE_PARENT, IMAGE, engine_address(), act)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LAUNCHER, *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            count = 2 if act == "commit" else 1
            yield process, [(await process.stdout.readline()).decode().strip() for _ in range(count)]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def status(client: docker.DockerClient, container: str) -> str:
    """What the engine says of a container."""
    try:
        return str(client.containers.get(container).status)
    except NotFound:
        return "gone"


async def test_a_box_does_not_outlive_its_launcher(client: docker.DockerClient) -> None:
    async with launcher_process("nothing") as (process, (container,)):
        assert status(client, container) == "running"
        process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            while status(client, container) != "gone":
                await asyncio.sleep(0.02)  # the engine tells nobody


async def test_what_dead_launchers_have_left_is_removed(client: docker.DockerClient) -> None:
    async with launcher_process("pause") as (dead, (paused,)), launcher_process("pause") as (_, (alive,)):
        dead.kill()
        await dead.wait()
        left = client.containers.get(paused)
        (runtime_volume,) = (mount["Name"] for mount in left.attrs["Mounts"] if mount["Type"] == "volume")
        never_started = client.api.create_container(
            IMAGE,
            "true",
            labels={identity.LAUNCHER: left.labels[identity.LAUNCHER]},
            host_config=client.api.create_host_config(
                mounts=[Mount("/.box-policy", runtime_volume, read_only=True, no_copy=True)]
            ),
        )["Id"]
        assert status(client, paused) == "paused"
        foreseen = await reap(engine_address(), dry_run=True)
        assert status(client, paused) == "paused"
        removed = await reap(engine_address())
        assert removed == foreseen
        assert [words for words in removed if words.startswith("container")] == [
            f"container {never_started[:12]} of box unknown, which was created",
            f"container {paused[:12]} of box orphan, which was paused",
        ]
        assert (status(client, paused), status(client, never_started)) == ("gone", "gone")
        assert [words for words in removed if words.startswith("directory") and f"-{dead.pid}-" in words]
        assert not [words for words in await reap(engine_address()) if words.startswith("directory")]
        assert status(client, alive) == "paused"
        client.api.remove_container(alive, force=True)


async def test_a_launcher_removes_them_too(client: docker.DockerClient) -> None:
    async with launcher_process("pause") as (dead, (paused,)):
        dead.kill()
        await dead.wait()
    launcher = DockerLauncher(IMAGE, engine_address())
    await launcher.create(BoxSpec("first"))
    async with asyncio.timeout(PATIENCE):
        while status(client, paused) != "gone":
            await asyncio.sleep(0.02)  # it is done in the background
    await launcher.close()


async def test_temporary_images_of_the_dead(client: docker.DockerClient) -> None:
    async with launcher_process("commit") as (process, (image, _)):
        assert not [words for words in await reap(engine_address()) if "image" in words]
        process.kill()
        await process.wait()
        async with asyncio.timeout(PATIENCE):
            while not (removed := [words for words in await reap(engine_address()) if "image" in words]):
                await asyncio.sleep(0.02)  # the engine still ends the box
        assert removed == [f"temporary image {image.removeprefix('sha256:')[:12]}"]
        assert not client.images.list(filters={"label": f"{identity.IMAGE_BOX}=orphan"})


def test_who_lives() -> None:
    boot, namespace, pid, started = identity.own().split("/")
    assert identity.may_live(identity.own()) is True
    assert identity.may_live(f"x/{namespace}/{pid}/{started}") is False
    assert identity.may_live(f"{boot}/{namespace}/{pid}/{int(started) - 1}") is False
    assert identity.may_live(f"{boot}/{namespace}/{2**22}/{started}") is False
    assert identity.may_live(f"{boot}/1/{pid}/{started}") is None
    for nonsense in ("", "a/b", f"{boot}/{namespace}/x/1", f"{boot}/{namespace}/../1", "/".join("abcde")):
        assert identity.may_live(nonsense) is not True


async def test_what_others_make_of_images_of_boxes_is_theirs(client: docker.DockerClient) -> None:
    async with launcher_process("commit") as (process, (image, _)):
        theirs = client.api.create_container(image, "true")["Id"]
        assert client.containers.get(theirs).labels[identity.LAUNCHER] == ""
        process.kill()
        await process.wait()
        await reap(engine_address())
        assert status(client, theirs) == "created"
        derived = client.containers.get(theirs).commit("box-policy-test/theirs", "own")
        client.api.remove_container(theirs)
        await reap(engine_address())
        assert client.images.get(str(derived.id))
        client.images.remove("box-policy-test/theirs:own")


async def test_a_launcher_in_another_pid_namespace(
    client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot, _, pid, started = identity.own().split("/")
    elsewhere = {identity.LAUNCHER: f"{boot}/1/{pid}/{started}"}
    mounted = client.api.create_host_config(mounts=[Mount("/.box-policy", "box-policy-runtime-test")])
    left = client.api.create_container(IMAGE, "true", labels=elsewhere, host_config=mounted)["Id"]
    running = client.containers.run(IMAGE, ["sleep", "1000"], labels=elsewhere, detach=True)
    assert not [words for words in await reap(engine_address()) if "container" in words]
    monkeypatch.setattr(reaper, "_OLD", -10.0)
    removed = [words for words in await reap(engine_address()) if "container" in words]
    assert removed == [f"container {left[:12]} of box unknown, which was created"]
    running.remove(force=True)
    client.api.remove_volume("box-policy-runtime-test")


async def test_interpreters_of_other_versions(
    client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A launcher whose interpreter is removed beneath it brings it in again.
    launcher = DockerLauncher(IMAGE, engine_address())
    box = await launcher.create(BoxSpec("user"))
    monkeypatch.setattr(reaper, "_OLD_RUNTIME", -10.0)
    version = runtime.collect().version
    assert f"interpreter for boxes {version}" not in await reap(engine_address())
    await box.close()
    assert f"interpreter for boxes {version}" in await reap(engine_address())
    assert not client.images.list(filters={"label": f"{identity.RUNTIME}={version}"})
    again = await launcher.create(BoxSpec("user"))
    assert (await shell(again, "echo on")).output == "on\n"
    await launcher.close()


async def test_there_is_no_engine_to_clean(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="none is running there"):
        await reap(f"unix://{tmp_path}/absent")


def test_the_interpreter_is_the_same_archive_every_time() -> None:
    made = runtime.collect()
    assert runtime.collect().version == made.version
    with tarfile.open(fileobj=BytesIO(made.tar())) as archive:
        entries = archive.getmembers()
    assert [entry.name for entry in entries] == sorted(f".box-policy/{path}" for path in made.files)
    assert {(entry.uid, entry.mtime) for entry in entries} == {(0, 0)}
    assert b"/etc/ld.so.preload" not in made.files["ld.so"]
    assert not any(path.endswith(".py") for path in made.files)
    assert sum(map(len, made.files.values())) < 64 << 20


def test_a_python_that_cannot_be_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    with pytest.raises(SandboxError, match="can't be copied into containers"):
        runtime.collect()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SandboxError, match="can't be copied into containers"):
        runtime.collect()
