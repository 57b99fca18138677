"""Who may speak to the endpoint."""

import asyncio
import sys

import pytest

from box_policy.control.endpoint import TcpAddress, UnixAddress
from tests.control.conftest import POLICY, TOKEN, Control, MakeControl
from tests.control.test_api import error
from tests.control.test_endpoint import LOOPBACK, LOOPBACK6


@pytest.fixture(params=["unix", "IPv4", "IPv6"])
async def guarded(request: pytest.FixtureRequest, make_control: MakeControl) -> Control:
    """An endpoint with a token, on every kind of address."""
    address = {"unix": None, "IPv4": LOOPBACK, "IPv6": LOOPBACK6}[request.param]
    return make_control(address, token=TOKEN)


class TestToken:
    async def test_the_right_one(self, guarded: Control) -> None:
        assert (await guarded.client.get(POLICY)).status_code == 200
        headers = {"Authorization": f"bearer {TOKEN}"}
        assert (await guarded.client.get(POLICY, headers=headers)).status_code == 200

    @pytest.mark.parametrize(
        "lines",
        [
            [],
            ["Authorization:"],
            ["Authorization: Bearer"],
            ["Authorization: Bearer "],
            [f"Authorization: {TOKEN}"],
            [f"Authorization: Basic {TOKEN}"],
            [f"Authorization: Bearer {TOKEN[:8]}"],
            [f"Authorization: Bearer {TOKEN[:-1]}"],
            [f"Authorization: Bearer {TOKEN}x"],
            [f"Authorization: Bearer {TOKEN.upper()}"],
            [f"Authorization: Bearer {TOKEN}, Bearer {TOKEN}"],
            ["Authorization: Bearer " + "x" * 8_000],
            ["Authorization: Bearer \xe9\xff" + TOKEN[2:]],
            [f"Authorization: Bearer {TOKEN}"] * 2,
            [f"Authorization: Bearer {TOKEN}", "Authorization: Bearer wrong"],
            [f"Proxy-Authorization: Bearer {TOKEN}"],
            [f"Cookie: token={TOKEN}"],
        ],
        ids=lambda lines: str(lines)[:60],
    )
    async def test_no_other(self, guarded: Control, lines: list[str]) -> None:
        status, answer = await guarded.say(
            f"GET {POLICY} HTTP/1.1", f"Host: {guarded.host}", "Connection: close", *lines
        )
        assert status == 401
        assert b"www-authenticate: bearer" in answer.lower()
        assert b"deny-all" not in answer
        assert TOKEN.encode() not in answer

    @pytest.mark.parametrize(
        "path",
        ["/v1/boxes", "/v1/boxes/nobody/network-policy", "/v1/status", "/v1/explain", "/v1/decisions",
         "/healthz", "/readyz", "/metrics", "/openapi.json", "/nothing", "*"],
    )  # fmt: skip
    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "OPTIONS", "BREW"])
    async def test_every_path_asks_for_it(self, guarded: Control, method: str, path: str) -> None:
        status, _ = await guarded.say(
            f"{method} {path} HTTP/1.1", f"Host: {guarded.host}", "Connection: close"
        )
        assert status == 401

    async def test_one_of_a_megabyte(self, guarded: Control) -> None:
        reader, writer = await guarded.open()
        writer.write(b"GET / HTTP/1.1\r\nAuthorization: Bearer " + b"x" * 2**20 + b"\r\n\r\n")
        async with asyncio.timeout(5):
            try:
                answer = await reader.read()
            except ConnectionError:
                answer = b"HTTP/1.1 400"
        assert answer.startswith(b"HTTP/1.1 400")
        writer.close()

    async def test_a_refused_policy_is_not_even_read(self, guarded: Control) -> None:
        headers = {"Authorization": "Bearer wrong", "Expect": "100-continue", "Content-Length": "9000000"}
        lines = [f"{name}: {value}" for name, value in headers.items()]
        status, answer = await guarded.say(f"PUT {POLICY} HTTP/1.1", f"Host: {guarded.host}", *lines)
        assert status == 401
        assert b"100 Continue" not in answer
        assert guarded.world.store.get("b").generation == 1

    async def test_refusals_are_logged_now_and_then(
        self, guarded: Control, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(50):
            await guarded.client.get("/", headers={"Authorization": "Bearer wrong"})
        lines = [record for record in caplog.records if "refused a request" in record.getMessage()]
        assert 10 <= len(lines) <= 12


class TestHost:
    @pytest.mark.parametrize(
        ("kind", "host"),
        [
            ("unix", "localhost"),
            ("unix", "box-policy"),
            ("unix", "LocalHost:1234"),
            ("IPv4", "127.0.0.1:{port}"),
            ("IPv4", "localhost:{port}"),
            ("IPv6", "[::1]:{port}"),
            ("IPv6", "localhost:{port}"),
        ],
    )
    async def test_its_own(self, make_control: MakeControl, kind: str, host: str) -> None:
        control = make_control({"unix": None, "IPv4": LOOPBACK, "IPv6": LOOPBACK6}[kind], token=TOKEN)
        address = control.endpoint.address
        host = host.format(port=address.port if isinstance(address, TcpAddress) else 0)
        assert (await control.client.get(POLICY, headers={"Host": host})).status_code == 200

    @pytest.mark.parametrize(
        "host",
        [
            "attacker.example",
            "localhost.attacker.example",
            "attacker.example:{port}",
            "127.0.0.1.nip.io:{port}",
            "127.0.0.1:1",
            "127.0.0.2:{port}",
            "[::]:{port}",
            "0.0.0.0:{port}",
            "localhost:{port}:{port}",
            "localhost:x",
            "user@localhost:{port}",
            "",
        ],
    )
    async def test_no_other(self, guarded: Control, host: str) -> None:
        address = guarded.endpoint.address
        host = host.format(port=address.port if isinstance(address, TcpAddress) else 0)
        response = await guarded.client.put(POLICY, json="allow-all", headers={"Host": host})
        assert error(response)["code"] == "host_refused"
        assert guarded.world.store.get("b").generation == 1

    async def test_one_at_least(self, guarded: Control) -> None:
        status, _ = await guarded.say("GET /healthz HTTP/1.0", f"Authorization: Bearer {TOKEN}")
        assert status == 421

    async def test_one_at_most(self, guarded: Control) -> None:
        hosts = [f"Host: {guarded.host}", "Host: attacker.example"]
        status, _ = await guarded.say("GET /healthz HTTP/1.0", *hosts, f"Authorization: Bearer {TOKEN}")
        assert status in (400, 421)

    async def test_a_target_with_another_authority(self, guarded: Control) -> None:
        status, _ = await guarded.say(
            "GET http://attacker.example/healthz HTTP/1.1",
            f"Host: {guarded.host}",
            f"Authorization: Bearer {TOKEN}",
            "Connection: close",
        )
        assert status == 404


class TestWebPages:
    @pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost", ""])
    @pytest.mark.parametrize("method", ["GET", "PUT", "POST", "OPTIONS"])
    async def test_an_origin(self, guarded: Control, origin: str, method: str) -> None:
        response = await guarded.client.request(
            method, POLICY, content=b'"allow-all"', headers={"Origin": origin}
        )
        assert error(response)["code"] == "origin_refused"
        assert not any(name.startswith("access-control") for name in response.headers)
        assert guarded.world.store.get("b").generation == 1

    async def test_a_simple_request(self, guarded: Control) -> None:
        """What a form can send from any page, without being asked: a POST as text/plain."""
        response = await guarded.client.post(
            "/v1/explain",
            content=b'{"box":"b","targets":["x.test:1"]}',
            headers={"Content-Type": "text/plain"},
        )
        assert error(response)["code"] == "media_type_unsupported"

    async def test_a_get_that_would_change_something(self, guarded: Control) -> None:
        response = await guarded.client.request("GET", POLICY, json="allow-all")
        assert response.json() == {"mode": "deny-all"}
        response = await guarded.client.get(POLICY, headers={"X-HTTP-Method-Override": "PUT"})
        assert response.json() == {"mode": "deny-all"}


SPEAK = """
import os, socket, sys
directory = os.open(sys.argv[1], os.O_DIRECTORY)
os.fchdir(directory)
{before}
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[2])
peer.sendall(b"GET /v1/boxes HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
while data := peer.recv(65536):
    os.write(1, data)
"""
IN_ANOTHER_NETWORK = "os.unshare(os.CLONE_NEWNET)"
IN_A_USER_NAMESPACE = "os.unshare(os.CLONE_NEWUSER)"
UNTRACEABLE = "import ctypes; ctypes.CDLL(None).prctl(4, 0)"  # PR_SET_DUMPABLE
AS_ANOTHER_USER = "os.setgroups([]); os.setgid(1234); os.setuid(1234)"


async def speak(control: Control, before: str) -> bytes:
    """What a process of its own is answered; skips the test if the process can't become what it should."""
    assert isinstance(control.endpoint.address, UnixAddress)
    path = control.endpoint.address.path
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", SPEAK.format(before=before), str(path.parent), path.name,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(20):
        answer, errors = await process.communicate()
    if b"unshare" in errors or b"setuid" in errors or b"setgroups" in errors:
        pytest.skip(f"not possible here: {errors.decode().splitlines()[-1]}")
    return answer + errors


class TestPeers:
    async def test_a_process_in_a_box(self, make_control: MakeControl) -> None:
        asked: list[int] = []

        def is_box(cookie: int) -> bool:
            asked.append(cookie)
            return len(asked) > 1

        control = make_control(foreign=is_box)
        assert (await speak(control, "")).startswith(b"HTTP/1.1 200")
        answer = await speak(control, IN_ANOTHER_NETWORK)
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"peer_refused" in answer
        assert asked[0] != asked[1], "both have the same network namespace"

    async def test_another_namespace_is_no_box(self, make_control: MakeControl) -> None:
        control = make_control(foreign=lambda cookie: False)
        assert (await speak(control, IN_ANOTHER_NETWORK)).startswith(b"HTTP/1.1 200")

    @pytest.mark.parametrize("then", ["", UNTRACEABLE])
    async def test_a_process_in_a_box_of_another_gate(self, make_control: MakeControl, then: str) -> None:
        control = make_control(foreign=lambda cookie: False)
        answer = await speak(control, f"{IN_A_USER_NAMESPACE}; {then}")
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"peer_refused" in answer

    async def test_a_process_that_cannot_be_traced(self, make_control: MakeControl) -> None:
        control = make_control(foreign=lambda cookie: False)
        assert (await speak(control, UNTRACEABLE)).startswith(b"HTTP/1.1 200")

    async def test_another_user_can_not_even_connect(self, make_control: MakeControl) -> None:
        control = make_control()
        assert isinstance(control.endpoint.address, UnixAddress)
        control.endpoint.address.path.parent.chmod(0o755)
        assert b"PermissionError" in await speak(control, AS_ANOTHER_USER)

    async def test_another_user_is_not_served(self, make_control: MakeControl) -> None:
        control = make_control()
        assert isinstance(control.endpoint.address, UnixAddress)
        control.endpoint.address.path.parent.chmod(0o755)
        control.endpoint.address.path.chmod(0o666)
        answer = await speak(control, AS_ANOTHER_USER)
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"peer_refused" in answer
        assert b"deny-all" not in answer

    async def test_who_can_not_be_told(self, make_control: MakeControl) -> None:
        def broken(cookie: int) -> bool:
            raise RuntimeError("no list of boxes")

        control = make_control(foreign=broken)
        assert error(await control.client.get(POLICY))["code"] == "peer_refused"
