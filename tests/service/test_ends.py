"""However a part of it ends, nothing of a service's boxes is left."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lab import Lab
from tests.service.conftest import Server, until

CGROUPS = Path("/sys/fs/cgroup")


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and theirs."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            found |= {int(path.parent.name)} if int(fields[1]) == pid else set()
    return found.union(*(descendants(child) for child in found))


def named(pids: set[int], name: str) -> list[int]:
    """Those of a name."""
    kept = []
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == name:
                kept.append(pid)
    return kept


def exist(pids: set[int]) -> set[int]:
    """Those that have not ended."""
    left = set()
    for pid in pids:
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            left |= {pid} if state != "Z" else set()
    return left


def namespaces(pids: set[int]) -> set[str]:
    """The network namespaces that they live in, apart from this process's."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            found.add(str(Path(f"/proc/{pid}/ns/net").readlink()))
    return found - {str(Path("/proc/self/ns/net").readlink())}


def in_use() -> set[str]:
    """The network namespaces of all processes."""
    return namespaces({int(path.name) for path in Path("/proc").glob("[0-9]*")})


def cgroups() -> set[Path]:
    """The control groups that boxes have."""
    return {path for path in CGROUPS.glob("**/box-policy-*") if path.is_dir()}


@pytest.fixture
def busy() -> Iterator[Server]:
    """A service of its own, with a box in each state."""
    with Server() as server:
        one = server.create(name="one")["id"]
        server.run(one, "(sleep 1000 &) ; (setsid sleep 1000 >/dev/null 2>&1 &)")
        two = server.create(name="two")["id"]
        server.run(two, "sleep 1000 >/dev/null 2>&1 &")
        server.ask("POST", f"/{two}/snapshots", {"name": "x"}).ok()
        server.ask("POST", f"/{two}/pause").ok()
        yield server


def test_the_service_is_killed(running_lab: Lab, busy: Server) -> None:
    processes = descendants(busy.pid)
    assert len(processes) >= 8
    homes = namespaces(processes)
    assert len(homes) == 2
    files = set(Path("/tmp").iterdir())
    busy.kill()
    until(lambda: not exist(processes))
    until(lambda: not homes & in_use())
    until(lambda: not [path for path in cgroups() if str(busy.pid) in path.name])
    assert set(Path("/tmp").iterdir()) <= files


def test_the_service_is_told_to_stop(running_lab: Lab, busy: Server) -> None:
    processes = descendants(busy.pid)
    homes = namespaces(processes)
    busy.close()
    assert not exist(processes)
    until(lambda: not homes & in_use())
    assert not [path for path in cgroups() if str(busy.pid) in path.name]


def test_a_box_s_init_is_killed(running_lab: Lab, busy: Server) -> None:
    inits = named(descendants(busy.pid), "box-init")
    assert len(inits) == 2
    for init in inits:
        os.kill(init, signal.SIGKILL)
    until(lambda: busy.ask("GET", "").ok() == [])
    answer = busy.ask("GET", "/one")
    assert (answer.status, answer.error) == (404, "there is no box 'one': its processes have ended")
    until(lambda: named(descendants(busy.pid), "sleep") == [])
    assert len(namespaces(descendants(busy.pid))) == 0
    assert busy.run(busy.create(name="one")["id"], "echo again")["output"] == "again\n"


def test_the_zygote_is_killed(running_lab: Lab, busy: Server) -> None:
    (zygote,) = named(descendants(busy.pid), "box-zygote")
    os.kill(zygote, signal.SIGKILL)
    until(lambda: busy.ask("GET", "").ok() == [])
    assert busy.run(busy.create()["id"], "echo again")["output"] == "again\n"


def test_a_client_that_goes_away_while_its_box_is_made(running_lab: Lab, busy: Server) -> None:
    for box in busy.ask("GET", "").ok():
        busy.ask("DELETE", f"/{box['id']}").ok()
    host, _, port = busy.url.removeprefix("http://").rpartition(":")
    for _ in range(5):
        with socket.create_connection((host, int(port))) as sock:
            head = f"POST /v2/box HTTP/1.1\r\nHost: {host}:{port}\r\nX-Box-Api-Key: {busy.key}\r\n"
            sock.sendall(head.encode() + b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    until(lambda: named(descendants(busy.pid), "box-init") == [])
    assert busy.ask("GET", "").ok() == []
