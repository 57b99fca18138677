"""``box-policy run`` with a container image: real programs in a real engine, and what the origin saw."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from box_policy.cli.backend import Backend, chosen_image, not_found
from box_policy.cli.main import app
from box_policy.sandbox.docker import identity
from tests.containers.engine import IMAGE, Engine, engine
from tests.lab import Lab, plan

type Run = Callable[..., subprocess.CompletedProcess[str]]

COMMAND = [sys.executable, "-m", "box_policy", "run"]
PATIENCE = 60


@pytest.fixture(scope="module")
def docker() -> Engine:
    return engine()


@pytest.fixture
def environment(docker: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker.address)
    for name in ("BOX_POLICY_BACKEND", "BOX_POLICY_IMAGE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def options(environment: None, lab: Lab, tmp_path: Path) -> list[str]:
    """An image, the lab's name server, and its authority's certificate at /workspace/ca.pem."""
    shutil.copy(lab.ca_pem, tmp_path / "ca.pem")
    policy = ["--name-server", lab.nameserver, "--allow", "allowed.test"]
    return ["--image", IMAGE, *policy, "--workdir", str(tmp_path)]


@pytest.fixture
def run(options: list[str]) -> Run:
    def run(*command: str, more: Sequence[str] = (), stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *options, *more, "--", *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    return run


def refused(*options: str, **variables: str | None) -> str:
    """What is said of options that don't fit together."""
    clean: dict[str, str | None] = {"BOX_POLICY_BACKEND": None, "BOX_POLICY_IMAGE": None}
    result = CliRunner().invoke(app, ["run", *options, "--", "true"], env=clean | variables)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("options", "variables", "said"),
    [
        (["--backend", "docker"], {}, "--backend docker takes an image: --image python:3.13"),
        (["--backend", "namespaces", "--image", "x"], {}, "--image: boxes of the namespaces backend"),
        ([], {"BOX_POLICY_BACKEND": "docker"}, "takes an image"),
        ([], {"BOX_POLICY_BACKEND": "podman"}, "'podman' is none of namespaces, docker"),
        ([], {"BOX_POLICY_BACKEND": "namespaces", "BOX_POLICY_IMAGE": "x"}, "BOX_POLICY_IMAGE: boxes of"),
        ([], {"BOX_POLICY_IMAGE": "x y"}, "BOX_POLICY_IMAGE names 2 images"),
        (["--image", ""], {}, 'IMAGE: "" is no image'.replace("IMAGE", "--image")),
        (["--image", "--privileged"], {}, "is no image"),
        (["--image", "python=python:3"], {}, "is no image"),
        ([], {"BOX_POLICY_IMAGE": "Python"}, 'BOX_POLICY_IMAGE: "Python" is no image'),
    ],
)
def test_what_does_not_fit_together(options: list[str], variables: dict[str, str], said: str) -> None:
    assert said in refused(*options, **variables)


@pytest.mark.parametrize(
    ("backend", "image", "variables", "expected"),
    [
        (None, None, {}, (Backend.NAMESPACES, None)),
        (None, "typed", {}, (Backend.DOCKER, "typed")),
        (Backend.DOCKER, None, {"IMAGE": "set"}, (Backend.DOCKER, "set")),
        (None, None, {"IMAGE": "set"}, (Backend.DOCKER, "set")),
        (None, "typed", {"BACKEND": "namespaces", "IMAGE": "set"}, (Backend.DOCKER, "typed")),
        (Backend.NAMESPACES, None, {"BACKEND": "docker", "IMAGE": "set"}, (Backend.NAMESPACES, None)),
        (None, None, {"BACKEND": "", "IMAGE": ""}, (Backend.NAMESPACES, None)),
    ],
)
def test_what_is_typed_comes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch,
    backend: Backend | None,
    image: str | None,
    variables: dict[str, str],
    expected: tuple[Backend, str | None],
) -> None:
    for name in ("BACKEND", "IMAGE"):
        monkeypatch.setenv(f"BOX_POLICY_{name}", variables.get(name, ""))
    assert chosen_image(backend, image) == expected


def test_an_engine_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    command = [*COMMAND, "--image", IMAGE, "--", "true"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1 and "the Docker engine can't be reached" in done.stderr


class TestTheNetwork:
    def test_what_is_allowed(self, run: Run, lab: Lab) -> None:
        """Also at a foreign address: the gate goes by the name."""
        spoof = f"allowed.test:443:{plan.EVIL4}:443"
        done = run("curl", "-sS", "--cacert", "ca.pem", "--connect-to", spoof, "https://allowed.test/path")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["target"] == "/path"
        assert [request.tls for request in lab.requests()] == [True]
        assert lab.packets(plan.EVIL4) == []

    def test_what_is_not(self, run: Run, lab: Lab) -> None:
        urls = ["https://evil.test/", f"https://{plan.EVIL4}/"]
        done = run("sh", "-c", f"curl -sS {urls[0]}; echo $?; curl -sSk {urls[1]} || echo refused")
        assert done.stdout.split() == ["6", "refused"]
        assert "--allow evil.test" in done.stderr and f"--allow-cidr {plan.EVIL4}/32" in done.stderr
        assert lab.packets() == []


class TestTheProgram:
    def test_it_is_the_image_s(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("SECRET", "x")
        script = "echo $PATH; . /etc/os-release; echo $ID $VERSION_ID; echo ${SECRET-none} $A; pwd"
        done = run("sh", "-c", script, more=["--env", "A=b=c"])
        assert done.stdout.splitlines() == [
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "debian 13",
            "none b=c",
            "/workspace",
        ]

    def test_its_directories(
        self, run: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        shown = tmp_path_factory.mktemp("shown")
        shown.chmod(0o755)
        (shown / "file").write_text("shown\n")
        script = f"cat {shown}/file; echo made >made; touch {shown}/x || echo read-only"
        done = run("sh", "-c", script, more=["--read-only", str(shown)])
        assert done.stdout == "shown\nread-only\n", done.stderr
        assert (tmp_path / "made").read_text() == "made\n"

    def test_its_pipes_and_its_end(self, run: Run, docker: Engine) -> None:
        script = "tr a-z A-Z; echo err >&2; sleep 1000 & kill -9 $$"
        done = run("sh", "-c", script, stdin="hello")
        assert (done.returncode, done.stdout, done.stderr) == (128 + 9, "HELLO", "err\n")
        client = docker.client()
        left = client.containers.list(all=True, filters={"label": f"{identity.BOX}=box"})
        client.close()
        assert left == []

    def test_one_that_the_image_does_not_have(self, run: Run) -> None:
        done = run("cargo", "build")
        assert done.returncode == 1
        assert "cargo: no such program" in done.stderr and f"of its image, {IMAGE}" in done.stderr
        assert "--read-only" not in done.stderr
        assert "--workdir . makes this directory" in not_found("./x: no such program", "./x", IMAGE)

    def test_signals_reach_it(self, options: list[str]) -> None:
        script = "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
        process = subprocess.Popen(
            [*COMMAND, *options, "--", "sh", "-c", script],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "caught\n"
        assert process.wait(PATIENCE) == 9

    def test_a_terminal(self, options: list[str]) -> None:
        script = "test -t 0 && test -t 1 && test -t 2 && tty && read x && echo got $x"
        pid, master = pty.fork()
        if pid == 0:
            os.execv(COMMAND[0], [*COMMAND, *options, "--", "sh", "-c", script])
        seen = b""
        try:
            while b"/dev/pts/" not in seen:
                seen += os.read(master, 4096)
            os.write(master, b"typed\n")
            while data := os.read(master, 4096):
                seen += data
        except OSError:
            pass  # EIO: the other side is closed
        _, status = os.waitpid(pid, 0)
        os.close(master)
        assert os.waitstatus_to_exitcode(status) == 0, seen
        assert b"got typed" in seen
