"""However a part of it ends, nothing of a service's boxes is left."""

import os
import signal
import socket
import subprocess
import sys
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
def scratch(tmp_path: Path) -> Path:
    """Where the service puts what it puts into files."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return scratch


@pytest.fixture
def busy(scratch: Path) -> Iterator[Server]:
    """A service of its own, with a box in each state."""
    with Server(env={"TMPDIR": str(scratch)}) as server:
        one = server.create(name="one")["id"]
        server.run(one, "(sleep 1000 &) ; (setsid sleep 1000 >/dev/null 2>&1 &)")
        two = server.create(name="two")["id"]
        server.run(two, "sleep 1000 >/dev/null 2>&1 &")
        server.ask("POST", f"/{two}/snapshots", {"name": "x"}).ok()
        server.ask("POST", f"/{two}/pause").ok()
        yield server


def test_the_service_is_killed(running_lab: Lab, busy: Server, scratch: Path) -> None:
    processes = descendants(busy.pid)
    (zygote,) = named(processes, "box-zygote")
    assert len(processes) >= 8
    homes = namespaces(processes)
    assert len(homes) == 2
    busy.kill()
    until(lambda: not exist(processes))
    until(lambda: not homes & in_use())
    until(lambda: not [path for path in cgroups() if f"-{zygote}-" in path.name])
    assert list(scratch.iterdir()) == []


def test_the_service_is_told_to_stop(running_lab: Lab, busy: Server, scratch: Path) -> None:
    processes = descendants(busy.pid)
    (zygote,) = named(processes, "box-zygote")
    homes = namespaces(processes)
    busy.close()
    assert not exist(processes)
    until(lambda: not homes & in_use())
    until(lambda: not [path for path in cgroups() if f"-{zygote}-" in path.name])
    assert list(scratch.iterdir()) == []


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


SDK = """
import sys
from box_policy import Box
one, two = Box.create(network_policy="deny-all"), Box.create()
two.snapshot(name="x")
two.pause()
session = one.exec.session(cmd="echo up; sleep 1000", on_stdout=lambda _: print("up", flush=True))
sys.stdin.read()
"""


def test_the_process_that_uses_the_sdk_is_killed(require_lab: None, scratch: Path) -> None:
    user = subprocess.Popen(
        [sys.executable, "-c", SDK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(scratch)},
    )
    assert user.stdout is not None
    if user.stdout.readline() != b"up\n":
        user.communicate()
        pytest.skip("no boxes here: the program in one did not start")
    processes = descendants(user.pid)
    homes = namespaces(processes)
    (zygote,) = named(processes, "box-zygote")
    assert (len(named(processes, "box-init")), len(homes), len(own_sockets(processes)) > 0) == (2, 2, True)
    addresses = own_sockets(processes)
    user.kill()
    user.communicate(timeout=20)
    until(lambda: not exist(processes))
    until(lambda: not homes & in_use())
    until(lambda: not [path for path in cgroups() if f"-{zygote}-" in path.name])
    assert not addresses & {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()}
    assert list(scratch.iterdir()) == []


def own_sockets(pids: set[int]) -> set[str]:
    """The names of the unix sockets that these processes listen on."""
    inodes = set()
    for pid in pids:
        with suppress(OSError):
            inodes |= {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {line[7] for line in lines if len(line) > 7 and f"socket:[{line[6]}]" in inodes}
