"""``box-policy serve``: how it is started, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from box_policy.cli.main import app
from tests.service.conftest import until

COMMAND = [sys.executable, "-m", "box_policy", "serve"]
KEY = "0123456789abcdef"
PATIENCE = 20.0


def started(*options: str, **variables: str | None) -> Result:
    """What comes of a start that fails."""
    return CliRunner().invoke(app, ["serve", *options], env={"BOX_POLICY_API_KEY": None, **variables})


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--listen", "127.0.0.1:0"], "set BOX_POLICY_API_KEY"),
            (["--listen", "127.0.0.1:0", "--uds", "/tmp/x"], "give --listen or --uds"),
            (["--listen", "/tmp/x"], "--uds takes the path"),
            (["--listen", "0.0.0.0:80"], "never listens on all"),
            (["--listen", "example.com:80"], "not an IP address"),
            (["--uds", "/nonexistent/x/s.sock"], "does not exist"),
            (["--size", "small:memory=lots"], "is no bound"),
            (["--size", "giant:memory=1GiB"], "write one of small, medium, large"),
            (["--rootfs", "/nonexistent"], "is no directory"),
            (["--rootfs", "cobol=/"], "is no directory"),
            (["--backend", "docker"], "--backend docker takes an image"),
            (["--backend", "namespaces", "--image", "python:3.13"], "images take --backend docker"),
            (["--image", "python:3.13", "--rootfs", "/"], "--rootfs is for boxes of namespaces"),
            (["--image", "cobol=python:3.13"], "there is no runtime"),
            (["--image", "Python"], '"Python" is no image'),
            (["--private-range", "10.0.0.1/8"], "10.0.0.0/8"),
            (["--name-server", "localhost"], "not an IP address"),
            (["--limit", "conections=5"], "there is no limit 'conections'"),
            (["--log", "/nonexistent/log"], "No such file"),
            (["--default-policy", "/nonexistent"], "/nonexistent"),
            (["--key-file", "/nonexistent"], "/nonexistent"),
            (["--snapshots", "/dev/null/x"], "--snapshots"),
        ],
    )
    def test_one_that_can_not_be_done(self, tmp_path: Path, options: list[str], said: str) -> None:
        where = [] if "--listen" in options or "--uds" in options else ["--uds", str(tmp_path / "s.sock")]
        result = started(*where, *options)
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr and "Traceback" not in result.stderr
        assert all(line.startswith(("box-policy: ", "/nonexistent: ")) for line in result.stderr.splitlines())

    def test_a_key_that_anybody_could_guess(self) -> None:
        result = started("--listen", "127.0.0.1:0", BOX_POLICY_API_KEY="secret")
        assert (result.exit_code, "16 to 4096" in result.stderr) == (2, True)

    def test_a_port_in_use(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            result = started("--listen", f"127.0.0.1:{taken.getsockname()[1]}", BOX_POLICY_API_KEY=KEY)
        assert (result.exit_code, "is in use" in result.stderr) == (2, True)


class Running:
    """A service on a unix socket."""

    def __init__(self, path: Path, *options: str) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [*COMMAND, "--uds", str(path), *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline() + self.process.stderr.readline()

    def ask(self, method: str, path: str, **options: object) -> httpx.Response:
        transport = httpx.HTTPTransport(uds=str(self.path))
        with httpx.Client(transport=transport, timeout=PATIENCE) as client:
            return client.request(method, f"http://localhost{path}", **options)  # type: ignore[arg-type]

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path / "s.sock")
    yield running
    running.close()


def test_on_a_unix_socket(running: Running) -> None:
    """No key is needed: the kernel tells whose process it is."""
    assert str(running.path) in running.said
    assert f"BOX_POLICY_BASE_URL=unix://{running.path}" in running.said
    assert running.path.stat().st_mode & 0o777 == 0o600
    assert running.ask("GET", "/v2/box").json() == []
    assert running.ask("GET", "/v1/status").json()["ready"] is True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_told_to_stop(running: Running, number: signal.Signals) -> None:
    running.process.send_signal(number)
    assert running.process.wait(PATIENCE) == 0
    assert not running.path.exists()


def test_a_default_policy(tmp_path: Path, require_lab: None) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("mode: deny-all\n")
    running = Running(tmp_path / "s.sock", "--default-policy", str(policy))
    try:
        answer = running.ask("POST", "/v2/box", json={})
        if answer.status_code == 500:
            pytest.skip(f"no boxes here: {answer.json()['error']}")
        assert answer.json()["network_policy"] == {"mode": "deny-all"}
    finally:
        running.close()


class TestOwned:
    """A service that was started for one process."""

    @staticmethod
    def start(owner: int, lifeline: int) -> tuple[subprocess.Popen[bytes], str]:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind("")  # an abstract name of the kernel's choice: unix(7)
        listening.listen()
        name: bytes = listening.getsockname()
        with listening:
            process = subprocess.Popen(
                [*COMMAND, "--inherit", str(listening.fileno()), "--owner", str(owner)],
                pass_fds=[listening.fileno()],
                stdin=lifeline,
                stderr=subprocess.PIPE,
            )
        return process, "\0" + name[1:].decode()

    def test_its_lifeline_ends(self) -> None:
        reader, writer = os.pipe()
        process, name = self.start(os.getpid(), reader)
        os.close(reader)
        transport = httpx.HTTPTransport(uds=name)
        with httpx.Client(transport=transport, timeout=PATIENCE) as client:
            assert client.get("http://localhost/v2/box").json() == []
        os.close(writer)
        assert process.communicate(timeout=PATIENCE)[1] == b""
        assert process.returncode == 0

    def test_its_owner_is_another(self) -> None:
        """The number may be another process's by now."""
        reader, writer = os.pipe()
        process, _ = self.start(os.getppid(), reader)
        assert process.communicate(timeout=PATIENCE)[1] == b""
        os.close(reader)
        os.close(writer)

    def test_its_owner_ends(self) -> None:
        reader, writer = os.pipe()
        owner = os.fork()
        if owner == 0:
            os.close(reader)
            lifeline, _kept = os.pipe()
            process, name = self.start(os.getpid(), lifeline)
            child = os.fork()
            if child == 0:
                signal.alarm(int(PATIENCE))
                signal.pause()  # keeps the lifeline open
            with httpx.Client(transport=httpx.HTTPTransport(uds=name), timeout=PATIENCE) as client:
                client.get("http://localhost/v2/box").raise_for_status()
            os.write(writer, f"{process.pid} {child}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        os.close(writer)
        with open(reader, "rb") as pipe:
            service, child = map(int, pipe.readline().split())
        os.waitpid(owner, 0)
        until(lambda: not Path(f"/proc/{service}").exists() or _is_zombie(service))
        os.kill(child, signal.SIGKILL)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
