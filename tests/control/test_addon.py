"""Where a real mitmdump has its policies from: files, and the control endpoint."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests.gate.mitmdump import MITMDUMP, PORT, Mitmdump
from tests.gate.redirect import marked, redirected
from tests.lab import Lab, plan
from tests.lab.hellos import client_hello

pytestmark = pytest.mark.skipif(not MITMDUMP.exists(), reason="mitmdump isn't beside this Python")

ALLOWED = f"mode: custom\nallowed_domains: [allowed.test]\nallowed_cidrs: [{plan.CIDR}]\n"
DENIED = bytes.fromhex("15030300020231")
TOKEN = "0123456789abcdef-0123456789abcdef"

type Start = Callable[..., Mitmdump]


@pytest.fixture
def start(lab: Lab, tmp_path: Path) -> Iterator[Start]:
    started: list[Mitmdump] = []

    def start(*options: str, policy: str | None = ALLOWED) -> Mitmdump:
        more = [*options, "--set", f"box_policy_name_servers={lab.nameserver}"]
        started.append(Mitmdump(tmp_path, policy, more))
        started[-1].wait_for("box-policy gate listening")
        return started[-1]

    with redirected(PORT):
        yield start
    for mitmdump in started:
        mitmdump.stop()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(tmp_path / "control.sock"))
    with httpx.Client(transport=transport, base_url="http://localhost", timeout=10) as client:
        yield client


def endpoint(tmp_path: Path) -> tuple[str, str]:
    return "--set", f"box_policy_control={tmp_path / 'control.sock'}"


def hello(name: bytes = b"allowed.test", address: str = plan.ALLOWED4) -> bytes:
    """What the box is answered at first: nothing from the origin, which waits for more of the handshake."""
    with marked(socket.SOCK_STREAM, address) as sock:
        sock.connect((address, 443))
        sock.sendall(client_hello(name))
        return sock.recv(len(DENIED))


def echoing() -> socket.socket:
    sock = marked(socket.SOCK_STREAM, plan.CIDR4)
    sock.connect((plan.CIDR4, plan.ECHO_PORT))
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    return sock


def was_reset(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) != b"" and False
    except ConnectionResetError:
        return True


def replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


class TestFile:
    def test_a_new_revision_is_in_force_and_cuts(self, start: Start, lab: Lab, tmp_path: Path) -> None:
        mitmdump = start()
        with echoing() as sock:
            replace(tmp_path / "policy.yaml", "mode: deny-all\n")
            mitmdump.wait_for("generation 2")
            assert was_reset(sock)
        lab.reset()
        assert hello() == DENIED
        assert lab.packets() == []

    def test_a_bad_revision_leaves_all_as_it_is(self, start: Start, tmp_path: Path) -> None:
        mitmdump = start()
        with echoing() as sock:
            replace(tmp_path / "policy.yaml", "mode: custom\nallowed_domains: [x.test\n")
            mitmdump.wait_for("refused, generation 1 stays")
            sock.sendall(b"y")
            assert sock.recv(1) == b"y"

    def test_a_directory_has_a_file_for_each_box(self, start: Start, lab: Lab, tmp_path: Path) -> None:
        directory = tmp_path / "policies"
        directory.mkdir()
        (directory / "default.yaml").write_text(ALLOWED)
        (directory / "web.json").write_text('"deny-all"')
        boxes = [f"box_policy_boxes=web@{PORT}", f"box_policy_boxes=api@{PORT + 1}"]
        options = [word for box in boxes for word in ("--set", box)]
        mitmdump = start(*options, "--set", f"box_policy_file={directory}", policy=None)
        assert hello() == DENIED
        replace(directory / "web.json", json.dumps({"mode": "custom", "allowed_cidrs": [plan.CIDR]}))
        mitmdump.wait_for("policy web generation 2")
        with echoing() as sock:
            replace(directory / "default.yaml", "mode: deny-all\n")
            mitmdump.wait_for("policy api generation 2")
            sock.sendall(b"y")
            assert sock.recv(1) == b"y"


class TestControl:
    def test_a_policy_is_in_force_when_the_answer_comes(
        self, start: Start, lab: Lab, tmp_path: Path, control: httpx.Client
    ) -> None:
        start(*endpoint(tmp_path))
        with echoing() as sock:
            answer = control.put("/v1/boxes/default/network-policy", json="deny-all")
            assert (answer.status_code, answer.json()["generation"]) == (200, 2)
            assert was_reset(sock)
        assert hello() == DENIED

    def test_without_a_file_nothing_is_allowed_until_a_policy_is_put(
        self, start: Start, lab: Lab, tmp_path: Path, control: httpx.Client
    ) -> None:
        start(*endpoint(tmp_path), policy=None)
        assert hello() == DENIED
        assert lab.packets() == []
        policy = {"mode": "custom", "allowed_cidrs": [plan.CIDR]}
        assert control.put("/v1/boxes/default/network-policy", json=policy).status_code == 200
        echoing().close()

    def test_what_it_shows(self, start: Start, lab: Lab, tmp_path: Path, control: httpx.Client) -> None:
        start(*endpoint(tmp_path))
        assert hello(b"evil.test", plan.EVIL4) == DENIED
        with echoing():
            status = control.get("/v1/status").json()
        assert status["ready"]
        assert [box["id"] for box in status["boxes"]] == ["default"]
        assert status["boxes"][0]["connections"] == 1
        assert [(source["state"], source["error"]) for source in status["sources"]] == [("ok", None)]
        stream = control.get(
            "/v1/decisions", params={"backlog": 10, "follow": "false", "verdict": "deny"}
        ).text
        records = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
        assert [(record["name"], record["reason"]) for record in records] == [
            ("evil.test", "name_not_allowed")
        ]
        metrics = control.get("/metrics").text
        counted = 'box_policy_decisions_total{protocol="tls",reason="name_not_allowed",verdict="deny"} 1.0'
        assert counted in metrics
        assert "evil" not in metrics
        explained = control.post(
            "/v1/explain",
            json={"box": "default", "targets": ["https://allowed.test"], "resolve": True},
        ).json()["verdicts"][0]
        assert (explained["allowed"], plan.ALLOWED4 in explained["addresses"]) == (True, True)

    def test_the_socket_goes_with_the_gate(self, start: Start, tmp_path: Path) -> None:
        mitmdump = start(*endpoint(tmp_path))
        path = tmp_path / "control.sock"
        assert path.stat().st_mode & 0o777 == 0o600
        mitmdump.stop()
        assert not path.exists()

    def test_it_is_out_of_reach_of_a_box_by_address_and_by_name(
        self, start: Start, lab: Lab, tmp_path: Path
    ) -> None:
        (tmp_path / "token").write_text(TOKEN)
        token = ("--set", f"box_policy_control_token_file={tmp_path / 'token'}")
        policy = "mode: custom\nallowed_domains: [control.test]\n"
        start("--set", f"box_policy_control={plan.GATE4}:18090", *token, policy=policy)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"http://{plan.GATE4}:18090/healthz", headers=headers).status_code == 200
        lab.reset()
        lab.dns.set("control.test", A=[plan.GATE4])
        request = b"GET /healthz HTTP/1.1\r\nHost: control.test:18090\r\nAuthorization: Bearer "
        for address in (plan.GATE4, plan.EVIL4):
            with marked(socket.SOCK_STREAM, address) as sock:
                try:
                    sock.connect((address, 18090))
                    sock.sendall(request + TOKEN.encode() + b"\r\n\r\n")
                    assert not sock.recv(4096).startswith(b"HTTP/1.1 200")
                except ConnectionResetError:
                    pass
        with marked(socket.SOCK_STREAM, plan.EVIL4) as sock:
            sock.connect((plan.EVIL4, 80))
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: control.test\r\n\r\n")
            assert b"resolved_special" in sock.recv(4096)
        assert [packet for packet in lab.loopback_packets() if packet.port == 18090] == []


class TestRefusesToStart:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["box_policy_control=nonsense"], "box_policy_control"),
            (["box_policy_control=127.0.0.1:18090"], "token"),
            (["box_policy_control=0.0.0.0:18090"], "never listens on all"),
            (["box_policy_control=/nonexistent/a/b.sock"], "/nonexistent"),
            (["box_policy_control=/tmp"], "/tmp"),
            (
                ["box_policy_control=127.0.0.1:18090", "box_policy_control_token_file=/nonexistent"],
                "/nonexistent",
            ),
            (["box_policy_boxes=web@18081"], None),
            (["box_policy_boxes=we b@18081"], "box_policy_boxes"),
            (["box_policy_boxes=web@nonsense"], "box_policy_boxes"),
        ],
    )
    def test_with_one_line(
        self, require_lab: None, tmp_path: Path, options: Sequence[str], says: str | None
    ) -> None:
        directory = tmp_path / "policies"
        directory.mkdir()
        (directory / "other.yaml").write_text(ALLOWED)
        if says is None:
            options, says = [f"box_policy_file={directory}", *options], "web"
        else:
            (directory / "default.yaml").write_text(ALLOWED)
        settings = [word for option in options for word in ("--set", option)]
        mitmdump = Mitmdump(tmp_path, None if "box_policy_file" in options[0] else ALLOWED, settings)
        assert mitmdump.process.wait(timeout=20) == 1
        mitmdump.stop()
        assert any(says in line for line in mitmdump.output), mitmdump.output
        assert not any("Traceback" in line for line in mitmdump.output)

    def test_with_a_file_that_others_can_write(self, require_lab: None, tmp_path: Path) -> None:
        policy = tmp_path / "shared.yaml"
        policy.write_text(ALLOWED)
        policy.chmod(0o666)
        mitmdump = Mitmdump(tmp_path, None, ["--set", f"box_policy_file={policy}"])
        assert mitmdump.process.wait(timeout=20) == 1
        mitmdump.stop()
        assert any("chmod go-w" in line for line in mitmdump.output), mitmdump.output


def test_the_command_line_speaks_to_it(start: Start, tmp_path: Path) -> None:
    start(*endpoint(tmp_path))
    command = [sys.executable, "-m", "box_policy", "status", "--control", str(tmp_path / "control.sock")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "default" in done.stdout
