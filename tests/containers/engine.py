"""A real Docker engine for tests, started on demand, once a test run.

It lives in a network namespace of its own, without a route out; the addresses in that namespace are what its
containers can reach by their bridge.
"""

import atexit
import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import docker
import pytest
from docker.errors import DockerException

from tests.containers import prepare

IMAGE: Final = "box-policy-test/base"
"""Debian with Python and curl."""
_PATIENCE: Final = 30.0
_ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Engine:
    """A running engine."""

    address: str
    """As DOCKER_HOST has it."""
    pid: int
    """Of its daemon, in whose network namespace its bridges are."""
    image: str = IMAGE
    compose: tuple[str, ...] = ()
    """The command that ``docker compose`` is, for this engine's environment. Empty: there is none."""

    @property
    def netns(self) -> str:
        """The path of its network namespace."""
        return f"/proc/{self.pid}/ns/net"

    @property
    def environment(self) -> dict[str, str]:
        """What programs find it by."""
        return {**os.environ, "DOCKER_HOST": self.address, "DOCKER_BUILDKIT": "0"}

    def client(self) -> docker.DockerClient:
        """A client of its API, to be closed by the caller."""
        return docker.DockerClient(self.address, timeout=60)


def engine() -> Engine:
    """The engine of this test run. Skips the test, with the reason, where there can be none."""
    started = _started()
    if isinstance(started, str):
        pytest.skip(f"no Docker engine: {started}")
    return started


def engine_address() -> str:
    """The same, by its address alone."""
    return engine().address


@functools.cache
def _started() -> Engine | str:
    if reason := prepare.missing():
        return reason
    directory = Path(tempfile.mkdtemp(prefix="box-policy-docker-"))
    log = open(directory / "log", "wb")  # noqa: SIM115 - the daemon's, as long as it lives
    (directory / "daemon.json").write_text("{}")  # not this machine's
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.containers.daemon", str(directory)],
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    log.close()
    atexit.register(_stop, process, directory)
    address = f"unix://{directory}/sock"
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            client = docker.DockerClient(address, timeout=60)
            client.ping()
            break
        except (DockerException, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                return f"it doesn't start here: {_last_words(directory / 'log')}"
            time.sleep(0.05)  # it tells nobody when it is there
    with contextlib.closing(client), open(prepare.base_image(), "rb") as tar:
        client.api.import_image(tar, repository=IMAGE)
    plugin = prepare.compose_plugin()
    compose = (str(plugin),) if plugin.exists() else ()
    return Engine(address, process.pid, compose=compose)


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    errors = [line for line in lines if "level=fatal" in line or "failed to start" in line]
    return (errors or lines or ["it says nothing"])[-1][:500]


def _stop(process: subprocess.Popen[bytes], directory: Path) -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(directory, ignore_errors=True)
