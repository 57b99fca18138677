"""A sidecar's beginning, its end, and what happens to its rules: at no instant is there an open way out."""

import contextlib
import json
import queue
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyroute2.nftables.expressions import genex
from pyroute2.nftables.main import NFTables

from tests.lab import Lab, plan
from tests.sandbox.sidecars import (
    PATIENCE,
    POLICY,
    Sidecar,
    asked,
    connected,
    delete_rules,
    handshake,
    is_reset,
    no_rules_afterwards,
)

ELSEWHERE = "198.51.100.9"
OPEN = {"mode": "custom", "allowed_domains": ["evil.test"]}


@pytest.fixture
def directory(tmp_path: Path, lab: Lab) -> Iterator[Path]:
    (tmp_path / "policy.yaml").write_text(json.dumps(POLICY))
    with no_rules_afterwards():
        yield tmp_path


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Sidecar]]:
    started: list[Sidecar] = []

    def make(*options: str, ready: bool = True) -> Sidecar:
        started.append(Sidecar(directory, *options))
        if ready:
            started[-1].wait_for("ready")
        return started[-1]

    yield make
    for sidecar in started:
        sidecar.end(signal.SIGKILL)


@pytest.fixture
def tracking() -> Iterator[None]:
    """Somebody else's rules, which need connection tracking: from now on all is tracked."""
    with NFTables(nfgen_family=1) as nft:
        nft.table("add", name="other")
        nft.chain("add", table="other", name="out", hook="output", type="filter", priority=0, policy=1)
        nft.rule("add", table="other", chain="out", expressions=([genex("ct", {"dreg": 1, "key": 0})],))
        yield
        nft.table("del", name="other")


def from_outside(lab: Lab, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """A socket at the origin."""
    made: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()

    def make() -> None:
        lab.move_to_origin()
        made.put(socket.socket(socket.AF_INET, kind))

    threading.Thread(target=make).start()
    sock = made.get()
    sock.settimeout(PATIENCE)
    return sock


class Hammer:
    """Connects to a forbidden origin, again and again."""

    def __init__(self) -> None:
        self.tries = 0
        self._over = threading.Event()
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Hammer":
        self._thread.start()
        assert self._enough.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while not self._over.is_set():
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as sock:
                    sock.settimeout(0.05)  # nobody may answer for a while: there is no time to wait
                    with contextlib.suppress(OSError):
                        sock.connect((plan.EVIL4, plan.ECHO_PORT))
                        sock.send(b"x")
                        sock.recv(1)
                self.tries += 1
            if self.tries > 10:
                self._enough.set()


def has_no_network(lab: Lab) -> bool:
    lab.reset()
    assert is_reset(plan.ALLOWED4, 443) and is_reset(plan.ALLOWED6, 443)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(PermissionError):
        sock.sendto(b"x", (plan.ALLOWED4, 443))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((plan.NAMESERVER4, 53))
        sock.send(b"x" * 20)
        sock.recv(1)
    return lab.packets() == []


def test_its_ends_and_beginnings(start: Callable[..., Sidecar], lab: Lab) -> None:
    first = start()
    handshake(lab, plan.ALLOWED4, "allowed.test")
    with Hammer() as hammer:
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        tries = hammer.tries
        second = start()
        assert hammer.tries > tries + 100
        assert second.end() == 0
    assert lab.packets(plan.EVIL4) == []
    assert has_no_network(lab)
    start()
    handshake(lab, plan.ALLOWED4, "allowed.test")


def test_a_start_that_fails_leaves_no_way_out(directory: Path, lab: Lab) -> None:
    (directory / "policy.yaml").write_text('{"mode": "perhaps"}')
    sidecar = Sidecar(directory)
    assert sidecar.end(signal.SIGCONT) == 2
    assert "perhaps" in "".join(sidecar.output) and "ready" not in "".join(sidecar.output)
    assert has_no_network(lab)


def test_rules_that_somebody_changes(start: Callable[..., Sidecar], lab: Lab) -> None:
    sidecar = start()
    delete_rules()
    sidecar.wait_for("put back")
    assert is_reset(plan.EVIL4, plan.ECHO_PORT)
    with NFTables(nfgen_family=1) as nft:
        nft.chain("del", table="box_policy_sidecar", name="leave")
    sidecar.wait_for("put back", times=2)
    # Others may have rules of their own.
    with NFTables(nfgen_family=1) as nft:
        for _ in range(100):
            nft.table("add", name="other")
            nft.table("del", name="other")
    assert is_reset(plan.EVIL4, plan.ECHO_PORT)
    assert sum("put back" in line for line in sidecar.output) == 2


def test_the_policy_is_followed(start: Callable[..., Sidecar], directory: Path, lab: Lab) -> None:
    sidecar = start()
    with pytest.raises(OSError, match=r"(?i)access.denied"):
        handshake(lab, plan.EVIL4, "evil.test")
    (directory / "policy.yaml").write_text(json.dumps(OPEN))
    sidecar.wait_for("generation 2")
    handshake(lab, plan.EVIL4, "evil.test")
    lab.reset()
    with pytest.raises(OSError, match=r"(?i)access.denied"):
        handshake(lab, plan.ALLOWED4, "allowed.test")
    assert lab.packets(plan.ALLOWED4) == []


@pytest.mark.parametrize("tracked", [False, True])
def test_what_is_older_than_the_rules(
    start: Callable[..., Sidecar], lab: Lab, tracked: bool, request: pytest.FixtureRequest
) -> None:
    """And may be older than connection tracking, which then learns of it in the middle."""
    if tracked:
        request.getfixturevalue("tracking")
    with lab.listen(4711) as origin, connected(plan.EVIL4, 4711) as old, connected(plan.EVIL4, 4711) as heard:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.sendto(b"before", (plan.EVIL4, 4711))
            far, _ = origin.accept()
            also_far, _ = origin.accept()
            start()
            lab.reset()
            # Whose first packet goes out, and one whose first packet comes in.
            with pytest.raises(OSError):
                while True:
                    old.sendall(b"x")
                    old.recv(1)
            also_far.sendall(b"y")
            assert heard.recv(1) == b"y"
            with pytest.raises(OSError):
                while True:
                    heard.sendall(b"x")
                    heard.recv(1)
            with pytest.raises(PermissionError):
                datagrams.sendto(b"after", (plan.EVIL4, 4711))
        assert not [packet for packet in lab.packets(plan.EVIL4) if packet.payload]
        far.close()
        also_far.close()


def test_the_port_of_a_question_of_the_gates(start: Callable[..., Sidecar], lab: Lab) -> None:
    """Connection tracking still knows it, and would let another socket with that port use it."""
    start()
    asked(ELSEWHERE, "allowed.test")
    question = lab.dns.questions[-1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", question.peer[1]))
        with pytest.raises(PermissionError):
            sock.sendto(b"out of the house", (plan.NAMESERVER4, 53))


def test_connections_from_outside(start: Callable[..., Sidecar], lab: Lab) -> None:
    sidecar = start()
    with socket.create_server((plan.GATE4, 0)) as server, from_outside(lab) as client:
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"hello")
            assert client.recv(5) == b"hello"
            # Also of a gate that comes later.
            sidecar.end()
            start()
            accepted.sendall(b"again")
            assert client.recv(5) == b"again"
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        from_outside(lab, socket.SOCK_DGRAM) as client,
    ):
        server.bind((plan.GATE4, 0))
        client.sendto(b"hello", server.getsockname())
        _, sender = server.recvfrom(10)
        server.sendto(b"hello", sender)
        assert client.recv(10) == b"hello"


def test_connections_from_outside_that_are_denied(start: Callable[..., Sidecar], lab: Lab) -> None:
    with socket.create_server((plan.GATE4, 0)) as server, from_outside(lab) as before:
        before.connect(server.getsockname())
        old, _ = server.accept()
        start("--inbound", "deny")
        with from_outside(lab) as client, pytest.raises(ConnectionRefusedError):
            client.connect(server.getsockname())
        with old, pytest.raises(ConnectionResetError):
            before.sendall(b"x")
            before.recv(1)
        handshake(lab, plan.ALLOWED4, "allowed.test")
        handshake(lab, plan.ALLOWED6, "allowed.test")
        with connected(*server.getsockname()):
            server.accept()[0].close()


def test_datagrams_that_were_answered_before_they_were_denied(
    start: Callable[..., Sidecar], lab: Lab
) -> None:
    sidecar = start()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        from_outside(lab, socket.SOCK_DGRAM) as client,
    ):
        server.bind((plan.GATE4, 0))
        client.sendto(b"hello", server.getsockname())
        _, sender = server.recvfrom(10)
        server.sendto(b"hello", sender)
        assert client.recv(10) == b"hello"
        sidecar.end()
        start("--inbound", "deny")
        with pytest.raises(PermissionError):
            server.sendto(b"leak", sender)


@pytest.mark.parametrize("place", ["127.0.0.1", "::1"])
def test_somebody_else_has_its_port(start: Callable[..., Sidecar], lab: Lab, place: str) -> None:
    """Nobody says that it is ready; nothing leaves."""
    family = socket.AF_INET6 if ":" in place else socket.AF_INET
    with socket.create_server((place, 61001), family=family):
        late = start(ready=False)
        assert late.process.wait(PATIENCE) == 1
        late.wait_for(f"can't listen on {place} port 61001")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(PermissionError):
            sock.sendto(b"x", (plan.EVIL4, 9))
    assert [packet for packet in lab.packets() if packet.protocol == "udp"] == []


def test_a_name_server_that_anybody_could_be(start: Callable[..., Sidecar]) -> None:
    for address in ("127.0.0.11", plan.GATE6):
        refused = start("--name-server", address, ready=False)
        assert refused.process.wait(PATIENCE) == 2
        refused.wait_for(f"--name-server: {address} is in the network that is guarded")


def test_the_end_of_a_connection_reaches_the_origin(start: Callable[..., Sidecar], lab: Lab) -> None:
    """The kernel sends it, after the gate has closed its socket."""
    start()
    with connected(plan.CIDR4, plan.ECHO_PORT) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    lab.expect(lambda: [connection.closed for connection in lab.connections(plan.CIDR4)] == ["eof"])
    with connected(plan.CIDR4, plan.ECHO_PORT) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    lab.expect(lambda: lab.connections(plan.CIDR4)[-1].closed is not None)
