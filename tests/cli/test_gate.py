"""``box-policy gate``: how it is started, and how it ends. What its sidecar mode does: tests/sandbox."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.rcode
import httpx
import pytest
from typer.testing import CliRunner, Result

from box_policy.cli.main import app
from box_policy.sandbox.sidecar import namespace
from tests.gate.redirect import marked, redirected
from tests.lab import Lab, plan
from tests.sandbox.sidecars import no_rules_afterwards, without_net_admin

PATIENCE = 20.0
PORT, DNS_PORT = 18081, 18053
POLICY = {"mode": "custom", "allowed_domains": ["allowed.test"]}
COMMAND = [sys.executable, "-m", "box_policy", "gate", "--port", str(PORT), "--dns-port", str(DNS_PORT)]


def started(*options: str, **variables: str | None) -> Result:
    """What comes of a start that fails."""
    return CliRunner().invoke(app, ["gate", *options], env=variables)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(POLICY))
    return file


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--sidecar", "--listen", "0.0.0.0"], "--listen"),
            (["--inbound", "deny"], "--sidecar"),
            (["--host-network"], "--sidecar"),
            (["--private-range", "10.0.0.1/8"], "10.0.0.0/8"),
            (["--name-server", "localhost"], "not an IP address"),
            (["--limit", "conections=5"], "there is no limit 'conections'"),
            (["--log", "/nonexistent/log"], "No such file"),
            (["--control", "0.0.0.0:80"], "--control"),
            (["--control", "0.0.0.0:80", "--token-file", "/nonexistent"], "--control"),
            (["--control", "127.0.0.1:1", "--sidecar"], "--control: a sidecar's is a unix socket"),
            (["--control", "127.0.0.1:1", "--token-file", "/nonexistent"], "/nonexistent"),
            (["--policy", "/nonexistent"], "/nonexistent"),
        ],
    )
    def test_what_was_typed(self, policy: Path, options: list[str], said: str) -> None:
        given = [] if "--policy" in options else ["--policy", str(policy)]
        result = started(*given, *options, "--port", str(PORT), "--dns-port", str(DNS_PORT))
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr
        assert all(line.startswith("box-policy: ") for line in result.stderr.splitlines())

    def test_no_policy(self) -> None:
        result = started()
        assert (result.exit_code, "--policy" in result.stderr, "--control" in result.stderr) == (
            2,
            True,
            True,
        )

    @pytest.mark.parametrize("option", ["--port", "--ech", "--inbound"])
    def test_a_value_that_is_none(self, option: str) -> None:
        assert started("--policy", "x", option, "perhaps").exit_code == 2

    def test_a_port_that_is_taken(self, policy: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            result = started("--policy", str(policy), "--listen", "127.0.0.1", "--port", str(port))
        assert result.exit_code == 1
        assert f"can't listen on 127.0.0.1 port {port}" in result.stderr and "--port" in result.stderr

    def test_the_machines_own_network(
        self, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_lab: None
    ) -> None:
        (tmp_path / "core").mkdir()
        (tmp_path / "core" / "netdev_max_backlog").touch()
        assert not namespace.is_of_the_host()
        monkeypatch.setattr(namespace, "_SYSCTLS", tmp_path)
        result = started("--policy", str(policy), "--sidecar")
        assert result.exit_code == 1
        assert "--host-network" in result.stderr and len(result.stderr.splitlines()) == 1

    def test_marks_that_others_could_have(
        self, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, require_lab: None
    ) -> None:
        (tmp_path / "ipv4").mkdir()
        (tmp_path / "ipv4" / "fwmark_reflect").write_text("1\n")
        monkeypatch.setattr(namespace, "_SYSCTLS", tmp_path)
        result = started("--policy", str(policy), "--sidecar")
        assert (result.exit_code, "net.ipv4.fwmark_reflect is 1" in result.stderr) == (1, True)

    def test_a_sidecar_without_the_capability(self, policy: Path, require_lab: None) -> None:
        with no_rules_afterwards():
            done = subprocess.run(
                [sys.executable, "-m", "box_policy", "gate", "--sidecar", "--policy", str(policy)],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=without_net_admin,
                timeout=PATIENCE,
            )
        assert done.returncode == 1
        assert done.stderr == "box-policy: --sidecar: needs CAP_NET_ADMIN in its network namespace\n"


class Running:
    """A gate, told what to do by its environment alone."""

    def __init__(self, *options: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {f"BOX_POLICY_{name}": value for name, value in variables.items()},
        )
        self.shown: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(PATIENCE) and self.process.poll() is None, self.shown

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.shown.append(line)
            if "ready" in line:
                self._ready.set()
        self._ready.set()

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """The status, and what went to stdout."""
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output


@pytest.fixture
def ended() -> Iterator[list[Running]]:
    gates: list[Running] = []
    yield gates
    for gate in gates:
        if gate.process.poll() is None:
            gate.end(signal.SIGKILL)


def test_its_own_port_behind_a_redirect(policy: Path, tmp_path: Path, lab: Lab, ended: list[Running]) -> None:
    control = tmp_path / "control.sock"
    gate = Running(
        FILE=str(policy), CONTROL=str(control), NAME_SERVERS=plan.NAMESERVER4, LOG="-", LISTEN="127.0.0.1"
    )
    ended.append(gate)
    context = ssl.create_default_context(cafile=str(lab.ca_pem))
    with redirected(PORT, DNS_PORT):
        with marked(socket.SOCK_STREAM, plan.ALLOWED4) as sock:
            sock.connect((plan.ALLOWED4, 443))
            context.wrap_socket(sock, server_hostname="allowed.test").close()
        with marked(socket.SOCK_DGRAM, plan.EVIL4) as sock:
            sock.connect((plan.EVIL4, 53))
            sock.send(dns.message.make_query("evil.test", "A").to_wire())
            assert dns.message.from_wire(sock.recv(4096)).rcode() == dns.rcode.REFUSED
    assert lab.connections(plan.ALLOWED4, 443) and not lab.packets(plan.EVIL4)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(control)), base_url="http://localhost") as client:
        assert client.get("/readyz").status_code == 200
    status, output = gate.end()
    records = [json.loads(line) for line in output.splitlines()]
    assert status == 0
    assert {record.get("name") for record in records} >= {"allowed.test", "evil.test"}
    assert any("deny" in line and "evil.test" in line for line in gate.shown)
    assert any(f"redirect TCP to port {PORT}" in line for line in gate.shown)


def test_no_policy_until_it_is_told_one(tmp_path: Path, lab: Lab, ended: list[Running]) -> None:
    control = tmp_path / "control.sock"
    gate = Running("--quiet", LISTEN="127.0.0.1", CONTROL=str(control), NAME_SERVERS=plan.NAMESERVER4)
    ended.append(gate)

    def ask() -> int:
        with marked(socket.SOCK_DGRAM, plan.EVIL4) as sock:
            sock.connect((plan.EVIL4, 53))
            sock.send(dns.message.make_query("allowed.test", "A").to_wire())
            return dns.message.from_wire(sock.recv(4096)).rcode()

    with redirected(PORT, DNS_PORT):
        assert ask() == dns.rcode.REFUSED
        done = subprocess.run(
            [sys.executable, "-m", "box_policy", "policy", "set", "--control", str(control), "-"],
            input=json.dumps(POLICY),
            text=True,
            timeout=PATIENCE,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert ask() == dns.rcode.NOERROR
    assert gate.end(signal.SIGINT) == (0, "")
    assert all(line.startswith("box-policy: ready") for line in gate.shown)
