"""Where the endpoint listens, and how it ends."""

import asyncio
import os
import signal
import socket
import stat
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from box_policy.control.api import make_app
from box_policy.control.endpoint import (
    ControlError,
    Endpoint,
    TcpAddress,
    UnixAddress,
    parse_control_address,
)
from tests.control.conftest import POLICY, TOKEN, MakeControl, World

LOOPBACK = TcpAddress(ip_address("127.0.0.1"), 0)
LOOPBACK6 = TcpAddress(ip_address("::1"), 0)


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("unix:/run/x.sock", UnixAddress(Path("/run/x.sock"))),
            ("/run/x.sock", UnixAddress(Path("/run/x.sock"))),
            ("127.0.0.1:9090", TcpAddress(ip_address("127.0.0.1"), 9090)),
            ("[::1]:9090", TcpAddress(ip_address("::1"), 9090)),
            ("127.0.0.1:0", TcpAddress(ip_address("127.0.0.1"), 0)),
            ("localhost:9090", TcpAddress(ip_address("127.0.0.1"), 9090)),
        ],
    )
    def test_what_names_one(self, text: str, address: object) -> None:
        parsed = parse_control_address(text)
        assert parsed == address
        assert parse_control_address(str(parsed)) == address

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "unix:",
            "unix:relative.sock",
            "unix:@abstract",
            "/run/\0x",
            "/run/x/",
            "/" + "x" * 107,
            "/" + "é" * 54,
            "relative.sock",
            "localhost",
            "[localhost]:9090",
            "localhost.:9090",
            "9090",
            ":9090",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:x",
            "127.0.0.1:-1",
            "127.0.0.1:65536",
            "127.0.0.1:٩",
            "127.1:9090",
            "::1:9090",
            "[127.0.0.1]:9090",
            "[::1%lo]:9090",
            "[::ffff:127.0.0.1]:9090",
            "0.0.0.0:9090",
            "[::]:9090",
            "224.0.0.1:9090",
            "http://127.0.0.1:9090",
        ],
    )
    def test_what_names_none(self, text: str) -> None:
        with pytest.raises(ControlError):
            parse_control_address(text)

    def test_the_longest_path_can_be_bound(self, tmp_path: Path, world: World) -> None:
        directory = tmp_path / "d"
        path = directory / ("x" * (107 - len(os.fsencode(directory)) - 1))
        address = parse_control_address(str(path))
        endpoint = Endpoint(address, make_app(world.backend))
        endpoint.start()
        asyncio.run(endpoint.close())


def start(address: UnixAddress | TcpAddress, world: World, token: str | None = None) -> Endpoint:
    endpoint = Endpoint(address, make_app(world.backend), token=token)
    endpoint.start()
    return endpoint


class TestUnixSocket:
    async def test_it_is_its_owners_alone_from_its_first_moment(
        self, tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "new" / "control.sock"
        bind = socket.socket.bind
        modes = []

        def bind_and_look(sock: socket.socket, address: str) -> None:
            bind(sock, address)
            modes.append(stat.S_IMODE(path.lstat().st_mode))

        monkeypatch.setattr(socket.socket, "bind", bind_and_look)
        umask = os.umask(0)
        try:
            endpoint = start(UnixAddress(path), world)
        finally:
            os.umask(umask)
        assert modes == [0o600]
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        await endpoint.close()
        assert not path.exists()

    async def test_a_dead_endpoints_socket_is_replaced(self, tmp_path: Path, world: World) -> None:
        path = tmp_path / "control.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
            dead.listen()
        before = path.lstat().st_ino, path.lstat().st_ctime_ns
        endpoint = start(UnixAddress(path), world)
        assert (path.lstat().st_ino, path.lstat().st_ctime_ns) != before
        await endpoint.close()

    async def test_a_living_one_is_not(self, tmp_path: Path, world: World, make_control: MakeControl) -> None:
        address = UnixAddress(tmp_path / "control.sock")
        control = make_control(address)
        with pytest.raises(ControlError, match="in use"):
            start(address, world)
        assert (await control.client.get(POLICY)).status_code == 200

    async def test_nor_one_that_is_too_busy_to_answer(self, tmp_path: Path, world: World) -> None:
        path = tmp_path / "control.sock"
        with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
            busy.bind(str(path))
            busy.listen(0)
            waiting.connect(str(path))
            with pytest.raises(ControlError, match="in use"):
                start(UnixAddress(path), world)
        assert path.is_socket()

    @pytest.mark.parametrize("kind", ["file", "directory", "link"])
    async def test_nothing_but_a_socket_is_replaced(self, tmp_path: Path, world: World, kind: str) -> None:
        path = tmp_path / "control.sock"
        match kind:
            case "file":
                path.write_text("precious")
            case "directory":
                path.mkdir()
            case "link":
                path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ControlError, match="not a socket"):
            start(UnixAddress(path), world)
        assert os.path.lexists(path)

    @pytest.mark.parametrize(("mode", "good"), [(0o777, False), (0o1777, True), (0o755, True)])
    async def test_a_directory_that_others_may_write_to(
        self, tmp_path: Path, world: World, mode: int, good: bool
    ) -> None:
        directory = tmp_path / "d"
        directory.mkdir()
        directory.chmod(mode)
        address = UnixAddress(directory / "control.sock")
        if good:
            await start(address, world).close()
        else:
            with pytest.raises(ControlError, match="chmod go-w"):
                start(address, world)

    async def test_a_directory_that_another_user_owns(self, tmp_path: Path, world: World) -> None:
        directory = tmp_path / "d"
        directory.mkdir()
        try:
            os.chown(directory, 1234, -1)
        except OSError:
            pytest.skip("only root can give a directory away")
        with pytest.raises(ControlError, match="belongs to user 1234"):
            start(UnixAddress(directory / "control.sock"), world)

    async def test_a_directory_above_that_others_may_write_to(self, tmp_path: Path, world: World) -> None:
        (tmp_path / "above" / "d").mkdir(parents=True)
        (tmp_path / "above").chmod(0o777)
        with pytest.raises(ControlError, match="chmod go-w"):
            start(UnixAddress(tmp_path / "above" / "d" / "control.sock"), world)
        assert list((tmp_path / "above" / "d").iterdir()) == []

    async def test_a_link_that_a_stranger_made(self, tmp_path: Path, world: World) -> None:
        shared, target = tmp_path / "shared", tmp_path / "target"
        shared.mkdir()
        shared.chmod(0o1777)
        target.mkdir()
        (shared / "link").symlink_to(target)
        await start(UnixAddress(shared / "link" / "control.sock"), world).close()
        try:
            os.lchown(shared / "link", 1234, -1)
        except OSError:
            pytest.skip("only root can give a link away")
        with pytest.raises(ControlError, match="belongs to user 1234"):
            start(UnixAddress(shared / "link" / "control.sock"), world)
        assert list(target.iterdir()) == []

    async def test_of_two_that_find_a_dead_endpoints_socket_one_has_it(
        self, tmp_path: Path, world: World
    ) -> None:
        path = tmp_path / "control.sock"
        first = start(UnixAddress(path), world)
        path.unlink()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))  # as the other one found it, before the first was there
        with pytest.raises(ControlError, match="in use"):
            start(UnixAddress(path), world)
        assert path.is_socket()
        await first.close()
        await start(UnixAddress(path), world).close()
        assert list(tmp_path.iterdir()) == []

    async def test_only_the_last_directory_is_made(self, tmp_path: Path, world: World) -> None:
        with pytest.raises(ControlError, match="does not exist"):
            start(UnixAddress(tmp_path / "a" / "b" / "control.sock"), world)
        assert not (tmp_path / "a").exists()

    async def test_a_successors_socket_is_left_alone(self, tmp_path: Path, world: World) -> None:
        path = tmp_path / "control.sock"
        endpoint = start(UnixAddress(path), world)
        path.rename(tmp_path / "moved")
        path.write_text("another's")
        await endpoint.close()
        assert path.read_text() == "another's"


class TestTcp:
    @pytest.mark.parametrize("address", [LOOPBACK, LOOPBACK6], ids=str)
    async def test_only_at_the_address_given(self, make_control: MakeControl, address: TcpAddress) -> None:
        control = make_control(address, token=TOKEN)
        assert isinstance(control.endpoint.address, TcpAddress)
        assert control.endpoint.address.host == address.host
        assert control.endpoint.address.port
        assert (await control.client.get(POLICY)).status_code == 200
        other = "127.0.0.2" if address is LOOPBACK else "127.0.0.1"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(other, control.endpoint.address.port)

    @pytest.mark.parametrize(
        "token", [None, "", "short", "x" * 15, "x" * 5000, "with space and more", "ünïcödé" * 3]
    )
    async def test_not_without_a_good_token(self, world: World, token: str | None) -> None:
        with pytest.raises(ControlError, match="token"):
            start(LOOPBACK, world, token)

    async def test_no_answer_waits_for_another_packet(self, make_control: MakeControl) -> None:
        control = make_control(LOOPBACK, token=TOKEN)
        await control.client.get(POLICY)
        (connection,) = control.endpoint._state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    async def test_a_port_in_use(self, world: World, make_control: MakeControl) -> None:
        control = make_control(LOOPBACK, token=TOKEN)
        assert isinstance(control.endpoint.address, TcpAddress)
        with pytest.raises(ControlError, match="in use"):
            start(control.endpoint.address, world, TOKEN)

    async def test_a_port_just_left_can_be_had_again(self, world: World, make_control: MakeControl) -> None:
        first = make_control(LOOPBACK, token=TOKEN)
        await first.client.get(POLICY)
        await first.endpoint.close()
        second = make_control(first.endpoint.address, token=TOKEN)
        assert (await second.client.get(POLICY)).status_code == 200

    async def test_an_address_of_another_host(self, world: World) -> None:
        with pytest.raises(ControlError, match="not an address of this host"):
            start(TcpAddress(ip_address("192.0.2.1"), 0), world, TOKEN)


class TestEnding:
    async def test_promptly_with_a_stream_open(self, make_control: MakeControl) -> None:
        control = make_control()
        async with control.follow("backlog=1") as events:
            await anext(events)
            begun = time.monotonic()
            await control.endpoint.close()
            await control.serving
            assert time.monotonic() - begun < 1

    async def test_at_once_if_the_stream_is_closed_before(self, make_control: MakeControl) -> None:
        control = make_control()
        async with control.follow("backlog=1") as events:
            await anext(events)
            begun = time.monotonic()
            control.world.stream.close()
            await control.endpoint.close()
            assert time.monotonic() - begun < 0.2
            assert [event async for event in events] == []

    async def test_with_half_a_request_and_idle_connections(self, make_control: MakeControl) -> None:
        control = make_control()
        await control.client.get(POLICY)
        idle, half = await control.open(), await control.open()
        half[1].write(b"PUT / HTTP/1.1\r\nHost: box-policy\r\nContent-Type: application/json\r\n")
        async with asyncio.timeout(1):
            await control.endpoint.close()
            for reader, _ in (idle, half):
                try:
                    assert await reader.read() == b""
                except ConnectionResetError:
                    pass
        for _, writer in (idle, half):
            writer.close()

    async def test_twice_and_before_it_has_begun(self, tmp_path: Path, world: World) -> None:
        endpoint = start(UnixAddress(tmp_path / "control.sock"), world)
        await endpoint.close()
        await endpoint.close()
        async with asyncio.timeout(1):
            await endpoint.serve()
        await Endpoint(UnixAddress(tmp_path / "x"), make_app(world.backend)).close()

    async def test_who_connects_before_it_serves_is_answered(self, tmp_path: Path, world: World) -> None:
        path = tmp_path / "control.sock"
        endpoint = start(UnixAddress(path), world)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        serving = asyncio.create_task(endpoint.serve())
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        await endpoint.close()
        await serving

    async def test_the_processes_signals_are_not_its_own(self, make_control: MakeControl) -> None:
        before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        control = make_control()
        await control.client.get(POLICY)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
