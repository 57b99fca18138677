"""``box-policy run`` with a policy that changes while the program runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Lab, plan

COMMAND = [sys.executable, "-m", "box_policy"]
PYTHON = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin") or ""
"""One that every box sees."""
pytestmark = pytest.mark.skipif(not PYTHON, reason="python3 isn't installed for all users")
CIDR = {"mode": "custom", "allowed_cidrs": [plan.CIDR]}

# Speaks to the echo port, a line from stdin at a time, and says what came of it.
PROGRAM = f"""
import socket, sys
sock = None
for line in sys.stdin:
    try:
        if sock is None:
            sock = socket.create_connection(({plan.CIDR4!r}, {plan.ECHO_PORT}), 5)
        sock.sendall(line.encode())
        print(sock.recv(100).decode().strip() or "closed", flush=True)
    except OSError as error:
        sock = None
        print(type(error).__name__, flush=True)
"""


class Running:
    """A program in a box that does as it is told."""

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, "run", "--quiet", *options, "--", PYTHON, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self._said: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._changed:
                self._said.append(line)
                self._changed.notify_all()

    def ask(self, line: str) -> str:
        """What the program makes of a line."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def wait_for(self, text: str) -> None:
        with self._changed:
            said = self._changed.wait_for(lambda: any(text in line for line in self._said), timeout=15)
        assert said, self._said

    def close(self) -> None:
        """End it as Ctrl-C does."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=15)
        self._reader.join()


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(CIDR))
    return file


def replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


class TestWatch:
    @pytest.fixture
    def running(self, lab: Lab, policy: Path) -> Iterator[Running]:
        running = Running("--watch", str(policy))
        yield running
        running.close()

    def test_a_connection_ends_with_the_policy_that_allowed_it(
        self, running: Running, lab: Lab, policy: Path
    ) -> None:
        assert running.ask("hello") == "hello"
        replace(policy, '"deny-all"')
        running.wait_for("generation 2")
        assert running.ask("more") in ("ConnectionResetError", "BrokenPipeError")
        assert running.ask("again") == "ConnectionResetError"
        connection = lab.connections(plan.CIDR4)[0]
        assert (connection.received, connection.closed) == (b"hello\n", "reset")
        replace(policy, json.dumps(CIDR))
        running.wait_for("generation 3")
        assert running.ask("hello again") == "hello again"

    def test_a_bad_revision_changes_nothing_and_is_told(self, running: Running, policy: Path) -> None:
        assert running.ask("hello") == "hello"
        replace(policy, '{"mode": "allow-al"}')
        running.wait_for("refused, generation 1 stays")
        assert running.ask("still here") == "still here"


class TestControl:
    def test_the_command_changes_the_policy_of_the_one_box(self, lab: Lab, tmp_path: Path) -> None:
        socket = tmp_path / "control.sock"
        running = Running("--allow-cidr", plan.CIDR, "--control", str(socket))
        try:
            assert running.ask("hello") == "hello"
            control = [*COMMAND, "policy", "set", "--control", str(socket)]
            done = subprocess.run([*control, "--deny-all"], capture_output=True, text=True, timeout=30)
            assert (done.returncode, done.stderr) == (0, "")
            assert "generation 2" in done.stdout
            assert running.ask("more") in ("ConnectionResetError", "BrokenPipeError")
        finally:
            running.close()
        assert not socket.exists()

    def test_the_box_itself_is_refused_even_where_it_finds_the_socket(self, lab: Lab, tmp_path: Path) -> None:
        # --read-only shows the directory through an overlay, where a socket is only a file; root's box is of
        # another user id besides. And the endpoint itself refuses.
        socket = tmp_path / "control.sock"
        program = (
            "import socket; s = socket.socket(socket.AF_UNIX); "
            f"s.connect({str(socket)!r}); "
            "s.sendall(b'GET /v1/boxes HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n'); "
            "print(s.recv(4096).decode())"
        )
        options = ["--read-only", str(tmp_path), "--control", str(socket), "--allow-all"]
        done = subprocess.run(
            [*COMMAND, "run", "--quiet", *options, "--", PYTHON, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
        )
        by_the_kernel = ("PermissionError" in done.stderr, "ConnectionRefusedError" in done.stderr)
        assert "peer_refused" in done.stdout or any(by_the_kernel), done
        assert "HTTP/1.1 200" not in done.stdout

    def test_nor_reaches_it_on_tcp(self, lab: Lab, tmp_path: Path) -> None:
        token = tmp_path / "token"
        token.write_text("0123456789abcdef0123456789abcdef\n")
        lab.dns.set("sneaky.test", A=[plan.GATE4])
        program = (
            "import socket\n"
            f"for host in ({plan.GATE4!r}, 'sneaky.test', '127.0.0.1'):\n"
            "    try:\n"
            "        s = socket.create_connection((host, 9071), 5)\n"
            "        s.sendall(b'GET /healthz HTTP/1.1\\r\\nHost: sneaky.test:9071\\r\\n\\r\\n')\n"
            "        answer = s.recv(4096); print(host, answer[:12] or 'closed')\n"
            "    except OSError as error: print(host, type(error).__name__)"
        )
        options = ["--control", f"{plan.GATE4}:9071", "--token-file", str(token), "--allow-all"]
        options += ["--name-server", lab.nameserver]
        done = subprocess.run(
            [*COMMAND, "run", "--quiet", *options, "--", PYTHON, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert len(done.stdout.splitlines()) == 3, done
        assert "HTTP/1.1 200" not in done.stdout
        assert "HTTP/1.1 401" not in done.stdout
        assert [packet for packet in lab.loopback_packets() if packet.port == 9071] == []
