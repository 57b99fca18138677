"""Boxes that are containers: what their image, their engine and their spec make of them."""

import asyncio
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import docker
import pytest
from docker.errors import NotFound

from box_policy.sandbox.docker import DockerLauncher, identity, listeners
from box_policy.sandbox.docker.box import DockerBox
from box_policy.sandbox.launcher import (
    BoxSpec,
    Limits,
    Listeners,
    ProgramSpec,
    SandboxError,
)
from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces.network import DNS_PORT, TCP_PORT
from tests.containers.engine import IMAGE, engine_address
from tests.sandbox.boxes import PATIENCE, new_box, open_descriptors, python, shell

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_container_has_no_network_and_few_rights(
    docker_launcher: DockerLauncher, client: docker.DockerClient
) -> None:
    async with new_box(docker_launcher) as box:
        found = client.api.inspect_container(box.container)
        host = found["HostConfig"]
        assert host["NetworkMode"] == "none"
        assert not host["Privileged"]
        assert host["CapDrop"] == ["ALL"]
        assert host["CapAdd"] == ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID"]
        assert "no-new-privileges" in host["SecurityOpt"]
        assert host["AutoRemove"]
        assert host["LogConfig"]["Type"] == "none"
        assert not host["Devices"]
        assert found["Config"]["Labels"][identity.BOX] == "test"
        assert found["Config"]["Labels"][identity.LAUNCHER] == identity.own()
        assert {mount["Destination"]: mount["RW"] for mount in found["Mounts"]} == {
            "/.box-policy": False,
            "/.box-policy-socket": False,
        }


async def test_nobody_comes_to_the_socket_any_more(docker_launcher: DockerLauncher) -> None:
    async with new_box(docker_launcher) as box:
        shown = await shell(box, "ls -A /.box-policy-socket; touch /.box-policy-socket/control")
        assert shown.output.startswith("touch: cannot touch '/.box-policy-socket/control'")


async def shell_of_the_engine(client: docker.DockerClient, box: DockerBox, script: str) -> str:
    """What ``docker exec`` shows."""
    container = client.containers.get(box.container)
    _, output = await asyncio.to_thread(container.exec_run, ["sh", "-c", script])
    assert isinstance(output, bytes)
    return output.decode()


async def test_the_filter_holds_for_what_the_engine_starts_too(
    docker_launcher: DockerLauncher, client: docker.DockerClient
) -> None:
    code = """
import secrets
import socket
for arguments in ((40, 1, 0), (17, 3, 0), (2, 3, 1), (2, 1, 132), (16, 3, 12), (1, 5, 0), (2, 1, 0)):
    try:
        socket.socket(*arguments)
        print('made')
    except OSError as error:
        print(error.errno)
"""
    async with new_box(docker_launcher) as box:
        found = await shell_of_the_engine(client, box, f"python3 -c '{code.replace(chr(39), chr(34))}'")
        assert found.split() == ["97", "97", "1", "93", "93", "made", "made"]


async def test_directories_of_the_host(docker_launcher: DockerLauncher, tmp_path: Path) -> None:
    workdir, shown = tmp_path / "work", tmp_path / "shown"
    workdir.mkdir()
    shown.mkdir()
    (shown / "file").write_text("of the host")
    async with new_box(docker_launcher, BoxSpec("dirs", workdir=workdir, read_only=[shown])) as box:
        await shell(box, "echo from the box > /workspace/f")
        assert (workdir / "f").read_text() == "from the box\n"
        assert (await shell(box, f"cat {shown}/file")).output == "of the host"
        assert "Read-only" in (await shell(box, f"touch {shown}/x")).output
        assert (await python(box, "import os; os.chmod('/workspace/f', 0o4755)")).status == 1
        assert not (workdir / "f").stat().st_mode & stat.S_ISUID


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (BoxSpec("x", rootfs=Path("/")), "not of a root directory"),
        (BoxSpec("x", workdir=Path("/absent/dir")), "does not exist"),
        (BoxSpec("x", hostname="-"), "no host name"),
        (BoxSpec("x", read_only=[Path("/")]), "has its own directory there"),
        (BoxSpec("x", read_only=[Path("/run")]), "has its own directory there"),
        (BoxSpec("x", read_only=[Path("/var/run")]), "has its own directory there"),
        (BoxSpec("x", read_only=[Path("/etc/ssl")]), "has its own directory there"),
        (BoxSpec("x", image="sha256:" + "0" * 64), "can't be used"),
        (BoxSpec("x", directories=["/etc/x"]), "can't be made in a box"),
        (BoxSpec("x", image="box-policy-test/absent"), "docker pull box-policy-test/absent"),
        (BoxSpec("x", image="no such name"), "no such name"),
        (BoxSpec("x", limits=Limits(memory_bytes=1)), "can't live with"),
    ],
)
async def test_boxes_that_cannot_be(
    docker_launcher: DockerLauncher, client: docker.DockerClient, spec: BoxSpec, reason: str
) -> None:
    with pytest.raises(SandboxError, match=reason):
        await docker_launcher.create(spec)
    assert not client.containers.list(all=True, filters={"label": f"{identity.BOX}=x"})


async def test_no_directory_leads_to_the_engine(docker_launcher: DockerLauncher, tmp_path: Path) -> None:
    directory = Path(engine_address().removeprefix("unix://")).parent
    (tmp_path / "link").symlink_to(directory)
    for spec in (
        BoxSpec("x", workdir=directory),
        BoxSpec("x", workdir=directory.parent),
        BoxSpec("x", workdir=tmp_path / "link"),
        BoxSpec("x", read_only=[directory]),
    ):
        with pytest.raises(SandboxError, match="leads to the engine"):
            await docker_launcher.create(spec)


async def test_what_is_mounted_below_is_not_writable(
    docker_launcher: DockerLauncher, client: docker.DockerClient, tmp_path: Path
) -> None:
    async with new_box(docker_launcher, BoxSpec("below", read_only=[tmp_path])) as box:
        (mount,) = (
            mount
            for mount in client.api.inspect_container(box.container)["HostConfig"]["Mounts"]
            if mount["Source"] == str(tmp_path)
        )
        assert mount["BindOptions"]["NonRecursive"] is True


async def test_no_image_is_named() -> None:
    launcher = DockerLauncher(address="unix:///absent")
    with pytest.raises(SandboxError, match="no image is named"):
        await launcher.create(BoxSpec("x"))
    await launcher.close()


async def test_there_is_no_engine(tmp_path: Path) -> None:
    launcher = DockerLauncher("image", f"unix://{tmp_path}/absent.sock")
    with pytest.raises(SandboxError, match="the Docker engine can't be reached: none is running there"):
        await launcher.create(BoxSpec("x"))
    await launcher.close()


async def test_images_are_of_the_other_backend() -> None:
    launcher = NamespaceLauncher()
    with pytest.raises(SandboxError, match="not those of an image"):
        await launcher.create(BoxSpec("x", image="debian"))
    await launcher.close()


async def test_bounds(docker_launcher: DockerLauncher, client: docker.DockerClient) -> None:
    bounds = Limits(memory_bytes=96 << 20, pids=10, cpus=0.5)
    async with new_box(docker_launcher, BoxSpec("bounded", limits=bounds)) as box:
        assert set(box.limits) == {"memory", "pids", "cpus"}
        assert box.limits["memory"].startswith("96.0 MiB, Docker (cgroup v")
        assert client.api.inspect_container(box.container)["HostConfig"]["CpuQuota"] == 50_000
        assert (await python(box, "bytearray(300 << 20)")).status == -9
        assert box.limits["pids"].startswith("26 with those that serve it, Docker")
        forks = (
            "import os, signal\nfor n in range(99):\n  os.fork() or signal.pause()\n  print(n, flush=True)"
        )
        program = await box.start(ProgramSpec(["python3", "-c", forks]))
        assert await program.wait() == 1
        assert 10 <= len(client.api.top(box.container)["Processes"]) <= 26
        await shell(box, "kill -9 -1")
        assert (await shell(box, "echo on")).output == "on\n"


@pytest.mark.parametrize("way", ["kill", "remove", "stop"])
async def test_a_container_that_is_ended_by_others(
    docker_launcher: DockerLauncher, client: docker.DockerClient, way: str
) -> None:
    box = await docker_launcher.create(BoxSpec("doomed"))
    program = await box.start(ProgramSpec(["sleep", "1000"]))
    container = client.containers.get(box.container)
    end = {
        "kill": container.kill,
        "remove": lambda: container.remove(force=True),
        "stop": lambda: container.stop(timeout=0),
    }[way]
    await asyncio.to_thread(end)
    async with asyncio.timeout(PATIENCE):
        assert await program.wait() == -9
        await box.closed()
    with pytest.raises(SandboxError, match="ended"):
        await box.start(ProgramSpec(["true"]))
    for order in (box.pause, box.resume):
        with pytest.raises(SandboxError, match="ended"):
            await order()
    await box.close()


async def test_a_paused_box_is_closed(docker_launcher: DockerLauncher, client: docker.DockerClient) -> None:
    box = await docker_launcher.create(BoxSpec("paused"))
    await box.pause()
    async with asyncio.timeout(PATIENCE):
        await box.close()
    with pytest.raises(NotFound):
        client.containers.get(box.container)


async def test_every_process_stops(docker_launcher: DockerLauncher, client: docker.DockerClient) -> None:
    async with new_box(docker_launcher) as box:
        program = await box.start(ProgramSpec(["sh", "-c", "while :; do echo > /workspace/n; done"]))
        pids = [int(row[1]) for row in client.api.top(box.container)["Processes"]]
        await box.pause()
        times = [Path(f"/proc/{pid}/stat").read_text().split()[13:15] for pid in pids]
        assert client.containers.get(box.container).status == "paused"
        program.send_signal(9)
        await asyncio.sleep(0.05)  # nothing is to happen
        assert [Path(f"/proc/{pid}/stat").read_text().split()[13:15] for pid in pids] == times
        await box.resume()
        assert await program.wait() == -9


async def test_the_listeners_are_the_same_from_a_container(
    docker_launcher: DockerLauncher, client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(namespace: int) -> None:
        raise PermissionError

    monkeypatch.setattr(listeners, "from_within", refused)
    async with new_box(docker_launcher) as box:
        assert {sock.family for sock in box.listeners.tcp} == {socket.AF_INET, socket.AF_INET6}
        box.listeners.tcp[0].settimeout(PATIENCE)
        program = await box.start(
            ProgramSpec(["python3", "-c", "import socket; socket.create_connection(('192.0.2.1', 80))"])
        )
        connection, _ = await asyncio.to_thread(box.listeners.tcp[0].accept)
        connection.close()
        assert await program.wait() == 0
        of_launcher = client.containers.list(
            all=True, filters={"label": f"{identity.LAUNCHER}={identity.own()}"}
        )
        assert [container.id for container in of_launcher] == [box.container]


def sockets(*kinds: socket.SocketKind, port: int | None = None, listens: bool = True) -> Listeners:
    """Sockets of this process's own network namespace, in the place of a box's listeners."""
    made = []
    for kind, own_port in zip(kinds, (TCP_PORT, DNS_PORT, DNS_PORT), strict=True):
        sock = socket.socket(socket.AF_INET, kind)
        sock.bind(("127.0.0.1", own_port if port is None else port))
        if listens and kind == socket.SOCK_STREAM:
            sock.listen()
        made.append((sock,))
    return Listeners(*made)


async def test_listeners_that_are_others(docker_launcher: DockerLauncher) -> None:
    stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    others: list[Callable[[], Listeners]] = [
        lambda: sockets(stream, datagram, stream),  # of the launcher's own network
        lambda: sockets(stream, datagram, stream, port=0),
        lambda: sockets(stream, datagram, stream, listens=False),
        lambda: sockets(datagram, datagram, stream, port=0),
    ]
    for make in others:
        other = make()
        with pytest.raises(SandboxError, match="are others"):
            listeners.verified(other)
        assert {sock.fileno() for sock in (*other.tcp, *other.dns_udp, *other.dns_tcp)} == {-1}
    async with new_box(docker_launcher) as box:
        assert listeners.verified(box.listeners) is box.listeners


async def test_a_create_that_is_cancelled_leaves_no_container(
    docker_launcher: DockerLauncher, client: docker.DockerClient
) -> None:
    for patience in (0.0, 0.03, 0.15):
        descriptors = open_descriptors()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(patience):
                await docker_launcher.create(BoxSpec("cancelled"))
        assert not client.containers.list(all=True, filters={"label": f"{identity.BOX}=cancelled"})
        assert open_descriptors() <= descriptors + 2  # connections to the engine


async def test_two_launchers_at_once(client: docker.DockerClient) -> None:
    first, second = (DockerLauncher(IMAGE, engine_address()) for _ in range(2))
    boxes = await asyncio.gather(first.create(BoxSpec("1")), second.create(BoxSpec("2")))
    assert [(await shell(box, "echo on")).output for box in boxes] == ["on\n", "on\n"]
    await asyncio.gather(first.close(), second.close())
    with pytest.raises(SandboxError, match="closed"):
        await first.create(BoxSpec("3"))


async def test_nothing_is_left_open(docker_launcher: DockerLauncher) -> None:
    await (await docker_launcher.create(BoxSpec("1"))).close()
    before = open_descriptors()
    for _ in range(3):
        await (await docker_launcher.create(BoxSpec("2"))).close()
    assert open_descriptors() <= before
