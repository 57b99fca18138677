"""What ``box-policy doctor`` finds of Docker: engines of all kinds, and what only listens like one."""

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

import pytest

from box_policy.sandbox.doctor import docker_engine
from box_policy.sandbox.doctor.trial import Failure, Outcome
from tests.cli.examined import HOST, commands

# The engines of these tests have threads; the command has one.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* use of fork:DeprecationWarning")


class Engine:
    """What listens on a unix socket and answers as a Docker engine does, or not."""

    def __init__(self, path: Path, answers: Mapping[str, object]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.partition("?")[0].rpartition("/")[2]
                body = json.dumps(answers.get(name, {})).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingUnixStreamServer(str(path), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))


@contextmanager
def engine(path: Path, answers: Mapping[str, object]) -> Iterator[Mapping[str, str]]:
    """The environment that leads to it."""
    made = Engine(path, answers)
    made.thread.start()
    try:
        yield {"DOCKER_HOST": f"unix://{path}"}
    finally:
        made.server.shutdown()
        made.thread.join()
        made.server.server_close()


INFO = {
    "OSType": "linux",
    "OperatingSystem": "Debian",
    "KernelVersion": HOST.release,
    "Driver": "overlay2",
    "CgroupDriver": "systemd",
    "CgroupVersion": "2",
    "Images": 3,
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"],
    "MemoryLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
}
VERSION = {"Version": "28.0.1", "ApiVersion": "1.41", "Components": [{"Name": "Engine"}]}


class TestDocker:
    def test_an_engine_that_says_what_it_is(self, tmp_path: Path) -> None:
        boxes = [{"State": "running"}, {"State": "paused"}, {"State": "exited"}]
        with engine(tmp_path / "sock", {"version": VERSION, "info": INFO, "json": boxes}) as environment:
            found = docker_engine.check_docker(HOST, environment)
        assert [(finding.name, finding.state) for finding in found] == [
            ("Docker engine", "ok"),
            ("Docker's seccomp", "ok"),
            ("Docker's limits", "ok"),
            ("Docker's containers", "limited"),
        ]
        assert found[0].found == (
            f"Docker 28.0.1 (API 1.41) at unix://{tmp_path}/sock, rootless, storage overlay2,"
            " cgroups by systemd, version 2"
        )
        assert found[3].found == "3 images; of box-policy's: 2 running, 1 ended"
        assert commands(found[3]) == "box-policy gc"

    @pytest.mark.parametrize(
        ("change", "name", "state", "found"),
        [
            ({"OSType": "windows"}, "Docker engine", "missing", "its containers are of windows"),
            ({"KernelVersion": "6.6.0-linuxkit"}, "Docker engine", "missing", "it runs on another kernel"),
            ({"SecurityOptions": None}, "Docker's seccomp", "missing", "the engine has none"),
            (
                {"MemoryLimit": False},
                "Docker's limits",
                "limited",
                "held: processes, processors; not held: memory",
            ),
        ],
    )
    def test_an_engine_that_lacks_something(
        self, change: Mapping[str, object], name: str, state: str, found: str, tmp_path: Path
    ) -> None:
        with engine(
            tmp_path / "sock", {"version": VERSION, "info": {**INFO, **change}, "json": []}
        ) as environment:
            findings = docker_engine.check_docker(HOST, environment)
        (finding,) = (finding for finding in findings if finding.state != "ok")
        assert (finding.name, finding.state) == (name, state)
        assert found in finding.found
        assert finding.remedies

    @pytest.mark.parametrize("answers", [{"version": []}, {"version": VERSION, "info": [1]}, {"version": 7}])
    def test_an_engine_that_speaks_nonsense(self, answers: Mapping[str, object], tmp_path: Path) -> None:
        with engine(tmp_path / "sock", answers) as environment:
            (found,) = docker_engine.check_docker(HOST, environment)
        assert (found.state, "does not answer as an engine does" in found.found) == ("missing", True)

    @pytest.mark.parametrize(
        ("drips", "reason"), [(False, "Connection timed out"), (True, "not done within 1.5 seconds")]
    )
    def test_an_engine_that_never_answers(
        self, drips: bool, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(docker_engine, "_ANSWER_SECONDS", 0.4)
        monkeypatch.setattr(docker_engine, "_SECONDS", 1.5)
        stop = threading.Event()

        def serve() -> None:
            held = []
            while not stop.wait(0.05):
                try:
                    held.append(listener.accept()[0])
                except BlockingIOError:
                    pass
                for sock in held if drips else ():
                    try:
                        sock.send(b" ")
                    except OSError:
                        pass
            for sock in held:
                sock.close()

        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "sock"))
            listener.listen()
            listener.setblocking(False)
            thread = threading.Thread(target=serve)
            thread.start()
            started = time.monotonic()
            (found,) = docker_engine.check_docker(HOST, {"DOCKER_HOST": f"unix://{tmp_path}/sock"})
            took = time.monotonic() - started
            stop.set()
            thread.join()
        assert found.found.endswith(f"/sock does not answer as an engine does (ping: {reason})")
        assert (found.state, took < 5) == ("missing", True)
        assert "systemctl restart docker" in commands(found)

    @pytest.mark.parametrize(
        "address",
        [
            "nonsense",
            "tcp://192.0.2.1:2375",
            "ssh://me:secret@192.0.2.1",
            "::::",
            "\x1b[2J",
            "fd://",
            "unix//x",
        ],
    )
    def test_an_address_that_is_none_of_this_machine(self, address: str) -> None:
        (found,) = docker_engine.check_docker(HOST, {"DOCKER_HOST": address})
        assert (found.state, "no address of an engine on this machine" in found.found) == ("missing", True)
        assert "secret" not in found.found

    @pytest.mark.parametrize(
        ("owner", "group", "by_engine"),
        [
            ("docker", "docker", False),
            ("staff", "staff", False),
            (None, "docker", False),
            ("root", "docker", True),
        ],
    )
    def test_a_socket_of_another_user(
        self, owner: str | None, group: str, by_engine: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody is told to become a member of root's group."""
        monkeypatch.setattr(docker_engine, "_group", lambda path: owner)
        failure = Failure("connect", os.strerror(errno.EACCES), errno.EACCES)
        outcome = Outcome({"address": "unix:///run/x.sock", "path": "/run/x.sock"}, failure)
        found = docker_engine._no_engine(HOST, outcome, {})
        assert found.found == "/run/x.sock: Permission denied"
        assert ("dockerd --group" in found.remedies[0].text) == by_engine
        assert f"usermod -aG {group} " in commands(found)

    def test_no_socket(self, tmp_path: Path) -> None:
        environment = {"DOCKER_HOST": f"unix://{tmp_path}/none", "PATH": str(tmp_path)}
        (found,) = docker_engine.check_docker(HOST, environment)
        assert found.found == f"{tmp_path}/none: No such file or directory"
        (found,) = docker_engine.check_docker(replace(HOST, container="Docker"), environment)
        assert "--volume" in commands(found)

    def test_a_stale_socket_and_a_file(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / "stale"))
        (tmp_path / "file").touch()
        for name, reason in (("stale", "Connection refused"), ("file", "Socket operation on non-socket")):
            (found,) = docker_engine.check_docker(HOST, {"DOCKER_HOST": f"unix://{tmp_path}/{name}"})
            assert found.found == f"{tmp_path}/{name}: {reason}"

    @pytest.mark.parametrize(
        ("script", "state", "found"),
        [
            ("echo 2.26.1", "ok", "docker compose 2.26.1"),
            ("exit 1", "missing", "it ended with status 1"),
            ("exec yes", "missing", "it ended with status -"),
            ("exec sleep 60", "missing", "not done within"),
        ],
    )
    def test_compose(
        self, script: str, state: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(docker_engine, "_COMPOSE_SECONDS", 0.5)
        program = tmp_path / "docker"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        monkeypatch.setenv("PATH", environment["PATH"])
        finding = docker_engine.check_compose(HOST, environment)
        assert finding.state == state
        assert found in finding.found
