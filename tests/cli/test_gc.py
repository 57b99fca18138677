"""``box-policy gc``: what boxes have left is removed, and nothing else is."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from box_policy.cli import left_groups
from box_policy.control.files.mounts import Mount
from box_policy.sandbox.docker import identity
from tests.containers.engine import IMAGE, engine
from tests.service.conftest import Server, until

NOBODY = 4_194_304
"""Greater than the number of any process: the kernel's own bound."""
LONG_AGO = 1_000_000_000.0
PATIENCE = 60


def gc(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "DOCKER_HOST"}
    return subprocess.run(
        [sys.executable, "-m", "box_policy", "gc", *options],
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group, of this machine's own, that a box of a dead zygote could have left."""
    for hierarchy in ("pids", "memory", ""):
        group = Path("/sys/fs/cgroup", hierarchy, f"box-policy-{NOBODY}-1")
        try:
            group.mkdir()
            os.utime(group, (LONG_AGO, LONG_AGO))
            break
        except OSError:
            continue
    else:
        pytest.skip("no control group can be made here")
    yield group
    if group.exists():
        group.rmdir()


def test_control_groups(group: Path) -> None:
    dry = gc("--dry-run")
    assert (dry.returncode, dry.stdout) == (0, f"would be removed: control group {group}\n")
    assert group.exists()
    done = gc()
    assert f"removed: control group {group}\n" in done.stdout
    assert not group.exists()


class TestGroups:
    """On directories that look like groups."""

    @pytest.fixture
    def root(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        mount = Mount("0:1", "/", str(tmp_path), "cgroup2")
        monkeypatch.setattr(left_groups, "mounts", lambda: {1: mount, 2: mount})
        return tmp_path

    def add(self, root: Path, name: str, processes: str = "", at: float = LONG_AGO) -> Path:
        group = root / name
        group.mkdir(parents=True)
        (group / "cgroup.procs").write_text(processes)
        os.utime(group, (at, at))
        return group

    def test_what_is_left(self, root: Path) -> None:
        first = self.add(root, f"box-policy-{NOBODY}-1")
        nested = self.add(root, f"user.slice/a.scope/box-policy-{NOBODY}-23")
        assert left_groups.left_groups() == [first, nested]

    def test_what_is_not(self, root: Path) -> None:
        self.add(root, f"box-policy-{NOBODY}-1", "17\n")
        self.add(root, f"box-policy-{NOBODY}-2", at=2 * LONG_AGO)
        for name in ("box-policy-own", "box-policy-x-1", "box-policy-0-1", f"box-policy-{NOBODY}", "other"):
            self.add(root, name)
        assert left_groups.left_groups() == []

    def test_one_whose_maker_lives(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.add(root, f"box-policy-{os.getpid()}-1")
        assert len(left_groups.left_groups()) == 1
        name = Path("/proc/self/comm").read_text().strip()
        monkeypatch.setattr(left_groups, "ZYGOTE", name)
        assert left_groups.left_groups() == []


def test_without_docker() -> None:
    if os.path.exists("/var/run/docker.sock"):  # noqa: PTH110
        pytest.skip("this machine has an engine of its own, which is not the tests'")
    done = gc()
    assert (done.returncode, len(done.stderr.splitlines())) == (0, 1)
    assert "the Docker engine can't be reached" in done.stderr
    assert gc(DOCKER_HOST="unix:///nonexistent.sock").returncode == 1, "it was named"


def test_containers_and_images_of_a_service_that_was_killed(running_lab: object, tmp_path: Path) -> None:
    docker = engine()
    server = Server("--image", IMAGE, env={"DOCKER_HOST": docker.address})
    with server:
        box = server.create()["id"]
        taken = server.ask("POST", f"/{box}/snapshots", {"name": "one"}).ok()
        server.ask("POST", f"/{box}/pause").ok()
        alive = gc(DOCKER_HOST=docker.address)
        assert (alive.returncode, alive.stdout) == (0, ""), "all of it is in use"
        server.kill()
    done = gc(DOCKER_HOST=docker.address)
    assert done.returncode == 0, done.stderr
    assert f"of box {box}" in done.stdout and taken["image"].removeprefix("sha256:")[:12] in done.stdout
    client = docker.client()
    until(lambda: not client.containers.list(all=True, filters={"label": f"{identity.BOX}={box}"}))
    assert client.images.list(all=True, filters={"label": identity.SNAPSHOT}) == []
    client.close()
    assert gc(DOCKER_HOST=docker.address).stdout == ""
