"""The image: what is in it, and how it starts and ends with as few rights as it can have."""

import io
import shutil
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import docker
import pytest
from docker.models.containers import Container
from docker.utils import build as context_of_build

from tests.containers.pod import REPOSITORY, PodMaker, logs, run, wait_ready, wait_until, write_policy

pytest_plugins = ["tests.containers.fixtures"]

LEAST: Final[Mapping[str, Any]] = {
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "read_only": True,
    "tmpfs": {"/run/box-policy": "mode=0700,uid=65532,gid=65532,size=1m"},
    "network": "none",
}
DENY_ALL: Final = {"mode": "deny-all"}
MOST: Final = 160
"""Megabytes that the image may have on top of its base."""


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("policies")
    directory.chmod(0o755)
    write_policy(directory, DENY_ALL)
    return directory


@pytest.fixture(scope="module")
def gate(make_pod: PodMaker, policies: Path) -> Container:
    """A gate by itself."""
    gate = make_pod.start(make_pod.image, volumes=[f"{policies}:/etc/box-policy:ro"], **LEAST)
    wait_ready(gate)
    return gate


# What is in it


@pytest.fixture(scope="module")
def configuration(docker_client: docker.DockerClient, gate_image: str) -> dict[str, Any]:
    return dict(docker_client.images.get(gate_image).attrs["Config"])


def test_it_says_how_it_is_run(configuration: dict[str, Any]) -> None:
    assert configuration["Entrypoint"] == ["box-policy", "gate"]
    assert not configuration["Cmd"]
    assert configuration["User"] == "65532:65532"
    assert configuration["StopSignal"] == "SIGTERM"
    assert configuration["Healthcheck"]["Test"] == ["CMD", "box-policy", "status", "--ready"]
    assert {
        "BOX_POLICY_FILE=/etc/box-policy/policy.yaml",
        "BOX_POLICY_CONTROL=unix:/run/box-policy/control.sock",
    } <= set(configuration["Env"])
    assert configuration["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_it_is_small(docker_client: docker.DockerClient, gate_image: str) -> None:
    history = docker_client.images.get(gate_image).history()
    base = max(layer["Size"] for layer in history if "Imported" in layer["Comment"])
    assert sum(layer["Size"] for layer in history) - base < MOST << 20


def test_it_has_no_installer_and_nothing_that_gives_rights(gate: Container) -> None:
    installers = ["-name", "pip", "-o", "-name", "pip-*", "-o", "-name", "pip3*", "-o", "-name", "ensurepip"]
    assert run(gate, "find", "/opt", "/usr/local", *installers).output == ""
    assert run(gate, "find", "/", "-xdev", "-type", "f", "-perm", "/6000", user="0").output == ""
    programs = run(gate, "ls", "/opt/box-policy/bin").output.split()
    assert {program for program in programs if not program.startswith("python")} == {"box-policy"}


def test_everything_is_compiled(gate: Container) -> None:
    # The file system is read-only: what isn't compiled now would be at each start.
    missing = """
import importlib.util, pathlib, sys, sysconfig
for top in (sysconfig.get_path('purelib'), sysconfig.get_path('stdlib') + '/asyncio'):
    for path in pathlib.Path(top).rglob('*.py'):
        if not pathlib.Path(importlib.util.cache_from_source(str(path))).exists():
            print(path)
"""
    assert run(gate, "python3", "-c", missing).output == ""


def test_its_programs_and_directories_are_roots(gate: Container) -> None:
    others = ["!", "-user", "root", "-o", "-perm", "-o=w", "!", "-type", "l"]
    assert run(gate, "find", "/opt/box-policy", *others).output == ""
    made = {"/etc/box-policy": "root 755", "/run/box-policy": "65532 700"}
    for directory, expected in made.items():
        archive, _ = gate.get_archive(directory)
        with tarfile.open(fileobj=io.BytesIO(b"".join(archive))) as tar:
            found = tar.getmembers()[0]
        assert f"{'root' if found.uid == 0 else found.uid} {found.mode & 0o777:o}" == expected


def test_the_build_gets_only_what_it_needs(tmp_path: Path) -> None:
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    wanted = ("box_policy/cli/main.py", "wheels/a.whl")
    for stray in (*wanted, "box_policy/__pycache__/x.pyc", ".git/config", ".env", "tests/a.py"):
        (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / stray).write_text("")
    patterns = (REPOSITORY / ".dockerignore").read_text().splitlines()
    found = context_of_build.exclude_paths(str(tmp_path), patterns, dockerfile="Dockerfile")
    files = {path for path in found if (tmp_path / path).is_file()}
    assert files - {".dockerignore"} == {
        *("Dockerfile", "pyproject.toml", "README.md", "LICENSE", *wanted),
    }


# How it runs


def test_it_runs_as_nobody_on_a_read_only_file_system(gate: Container) -> None:
    status = run(gate, "cat", "/proc/1/status").output
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["Uid"].split() == ["65532"] * 4
    assert fields["CapEff"] == fields["CapPrm"] == fields["CapBnd"] == "0000000000000000"
    assert fields["NoNewPrivs"] == "1"
    assert run(gate, "touch", "/tmp/x").status != 0


def test_it_answers_on_its_socket_and_obeys(gate: Container) -> None:
    assert "deny-all" in run(gate, "box-policy", "status").output
    assert run(gate, "box-policy", "policy", "set", "--allow", "allowed.test").status == 0
    assert "allowed.test" in run(gate, "box-policy", "policy", "get").output


def test_the_engine_learns_that_it_is_healthy(make_pod: PodMaker, policies: Path) -> None:
    second = 10**9
    test = {
        "test": ["CMD", "box-policy", "status", "--ready"],
        "retries": 1,
        "interval": second,
        "timeout": 3 * second,
    }
    started = make_pod.start(
        make_pod.image, volumes=[f"{policies}:/etc/box-policy:ro"], healthcheck=test, **LEAST
    )

    def health() -> str:
        started.reload()
        return str(started.attrs["State"]["Health"]["Status"])

    wait_until(lambda: health() == "healthy", "the engine has seen it ready")
    # Its pid 1 still lives, but answers nobody.
    started.kill("SIGSTOP")
    try:
        wait_until(lambda: health() == "unhealthy", "the engine has seen it hang", patience=60)
    finally:
        started.kill("SIGCONT")


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_it_ends_within_a_second(make_pod: PodMaker, policies: Path, signal: str) -> None:
    started = make_pod.start(make_pod.image, volumes=[f"{policies}:/etc/box-policy:ro"], **LEAST)
    wait_ready(started)
    begun = time.monotonic()
    started.kill(signal)
    status = started.wait(timeout=30)["StatusCode"]
    assert time.monotonic() - begun < 2
    assert status == 0


def test_without_a_policy_it_says_so_and_ends(make_pod: PodMaker) -> None:
    started = make_pod.start(make_pod.image, **LEAST)
    assert started.wait(timeout=30)["StatusCode"] != 0
    (line,) = logs(started).strip().splitlines()
    assert "/etc/box-policy/policy.yaml" in line


def test_a_broken_policy_keeps_it_from_starting(make_pod: PodMaker, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    write_policy(tmp_path, "mode: custom\nallowed_domains: [http://x]\n")
    started = make_pod.start(make_pod.image, volumes=[f"{tmp_path}:/etc/box-policy:ro"], **LEAST)
    assert started.wait(timeout=30)["StatusCode"] != 0
    assert "policy.yaml" in logs(started)


def test_a_directory_that_others_can_write_to_holds_no_control_socket(
    make_pod: PodMaker, policies: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    volumes = [f"{policies}:/etc/box-policy:ro", f"{tmp_path}:/run/box-policy"]
    started = make_pod.start(make_pod.image, volumes=volumes, **{**LEAST, "tmpfs": {}})
    assert started.wait(timeout=30)["StatusCode"] != 0
    assert "others can write to the directory /run/box-policy" in logs(started)
