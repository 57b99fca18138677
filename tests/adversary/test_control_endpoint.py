"""The control endpoint: out of the box's reach, by whatever name, address or file; and not to be talked over.

The endpoint here is the real one, in front of the gate that the box lives behind, whose policy allows
everything. What it answers to whom is held in ``tests/control``; here is whether it can be got at.
"""

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import pytest_asyncio

from box_policy.control.endpoint import InheritedAddress, ListeningAddress, TcpAddress, UnixAddress
from box_policy.control.plane import ControlPlane
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.reasons import Reason
from box_policy.sandbox.launcher import BoxSpec
from box_policy.sandbox.namespaces import NamespaceLauncher
from tests.adversary.arena import Arena, Inmate, ids, start_agent
from tests.adversary.attack import Attack
from tests.adversary.kernel_attacks import attacks, python
from tests.adversary.wire import http, tls
from tests.lab import Lab, plan
from tests.service.conftest import Server

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "The control endpoint, from inside the box"
TOKEN: Final = "a-token-that-nobody-guesses"
PORTS: Final = (8081, 9090)
"""Where the endpoints listen, on each of the gate's own addresses, loopback and global."""
_OPEN: Final = "allow-all"
_NAMES: Final = {"mode": "custom", "allowed_domains": ["localhost", "*.rebind.test"]}
_LITERALS: Final = (
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0.0.0.0", "0", "[::1]",
    "[::]", "[::ffff:127.0.0.1]", "127.0.0.1.", plan.GATE4, f"[{plan.GATE6}]",
)  # fmt: skip


def _at_every_port(name: str) -> str:
    return f"""
ends = []
for port in {PORTS}:
    for path in (b"/v1/boxes", b"http://%s:%d/metrics" % (NAME, port)):
        request = b"GET %s HTTP/1.1\\r\\nHost: %s:%d\\r\\nAuthorization: Bearer {TOKEN}\\r\\n"
        request += b"X-Secret: %s\\r\\nConnection: close\\r\\n\\r\\n"
        for address in ADDRESSES:
            ends.append(says(address, port, request % (path, NAME, port, NONCE)))
result = together(ends)
""".replace("NAME", repr(name.encode()))


ATTACKS = [
    *(
        Attack(
            name=f"its port at another address, under the name {name}",
            policy=_NAMES,
            act=attacks(_at_every_port(name).replace("ADDRESSES", repr([plan.ALLOWED4]))),
            zone={"localhost": {"A": ["127.0.0.1"]}},
            sees="data",
            reasons=(reason,) * 4,
        )
        for name, reason in (
            ("localhost", Reason.RESOLVED_SPECIAL),
            ("box-policy", Reason.NAME_NOT_ALLOWED),
            *((literal, Reason.NAME_INVALID) for literal in _LITERALS),
        )
    ),
    Attack(
        name="its port at the addresses of the gate's host",
        policy=_OPEN,
        act=attacks(
            _at_every_port("localhost").replace(
                "ADDRESSES", repr([plan.GATE4, plan.GATE6, "::ffff:" + plan.GATE4, "10.0.2.2"])
            )
        ),
        sees="the end",
        reasons=(Reason.SPECIAL_ADDRESS,) * 16,
    ),
    *(
        Attack(
            name=f"an allowed name that leads to {kind}, {protocol}",
            policy=_NAMES,
            zone={"inward.rebind.test": answers},
            act=act(plan.EVIL4, host, port=PORTS[0]),
            sees=sees,
            reasons=(Reason.RESOLVED_SPECIAL,),
        )
        for kind, answers in (
            ("loopback", {"A": ["127.0.0.1"], "AAAA": ["::1"]}),
            ("the gate's own addresses", {"A": [plan.GATE4], "AAAA": [plan.GATE6]}),
        )
        for protocol, act, host, sees in (
            ("HTTP", http, b"inward.rebind.test:%d" % PORTS[0], "http 403"),
            ("TLS", tls, b"inward.rebind.test", "alert 49"),
        )
    ),
]


class Controlled:
    """The gate's control plane, at one address."""

    def __init__(self, arena: Arena, address: ListeningAddress, token: str | None) -> None:
        self.plane = ControlPlane(arena.gate, arena.audit)
        self.address = self.plane.listen(address, token)
        self.plane.start()

    async def say(self, *lines: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request, in the test's own words: its status and all that is answered."""
        if isinstance(self.address, UnixAddress):
            reader, writer = await asyncio.open_unix_connection(self.address.path)
        else:
            assert isinstance(self.address, TcpAddress)
            reader, writer = await asyncio.open_connection(str(self.address.host), self.address.port)
        writer.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body)
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        return int(answer.split()[1]) if answer else 0, answer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def endpoints(arena: Arena) -> AsyncIterator[list[Controlled]]:
    """Endpoints on every address that the gate's host has."""
    opened = [
        Controlled(arena, TcpAddress(ip_address(host), port), TOKEN)
        for host in ("127.0.0.1", "::1", plan.GATE4, plan.GATE6)
        for port in PORTS
    ]
    yield opened
    for controlled in opened:
        await controlled.plane.close()


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, endpoints: list[Controlled], attack: Attack) -> None:
    await arena.contains(attack)
    assert arena.lab.loopback_packets(protocol="tcp") == []


async def test_it_is_there(arena: Arena, endpoints: list[Controlled]) -> None:
    # What the box can't reach is what anybody on the gate's host can.
    for controlled in endpoints:
        status, _ = await controlled.say(
            "GET /healthz HTTP/1.1", f"Host: {controlled.address}", f"Authorization: Bearer {TOKEN}"
        )
        assert status == 200
    assert arena.lab.loopback_packets(protocol="tcp") != []


_CONNECT: Final = """
result = []
for address in ADDRESSES:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(3)
    try:
        sock.connect(address)
        sock.sendall(b"PUT /v1/boxes/BOX/network-policy HTTP/1.1\\r\\nHost: localhost\\r\\n"
                     b"Content-Type: application/json\\r\\nContent-Length: 11\\r\\n\\r\\n\\"allow-all\\"")
        answer = b""
        while True:
            more = sock.recv(65536)
            if not more:
                break
            answer += more
        result.append(answer.decode("latin-1"))
    except OSError as error:
        result.append(errno.errorcode.get(error.errno, "timeout"))
"""


def _to(addresses: list[str], box: str) -> str:
    return _CONNECT.replace("ADDRESSES", repr(addresses)).replace("BOX", box)


class TestUnixSockets:
    @pytest_asyncio.fixture(loop_scope="module")
    async def shared(self, arena: Arena) -> AsyncIterator[tuple[Path, Controlled]]:
        """An endpoint whose socket lies in a directory that a careless caller shows to boxes."""
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            controlled = Controlled(arena, UnixAddress(directory / "c.sock"), None)
            yield directory, controlled
            await controlled.plane.close()

    async def test_in_the_boxs_own_directory(self, arena: Arena, shared: tuple[Path, Controlled]) -> None:
        directory, controlled = shared
        inmate = await arena.inmate("deny-all", id="careless", workdir=directory)
        controlled.plane.store.create("careless", NetworkPolicy.parse("deny-all"), source="test")
        _refused(await python(inmate, _to(["/workspace/c.sock"], "careless")))
        assert arena.gated(inmate).policy.policy == NetworkPolicy.parse("deny-all")
        status, _ = await controlled.say("GET /v1/boxes HTTP/1.1", "Host: localhost")
        assert status == 200

    async def test_in_the_directory_of_another_gates_box(
        self, arena: Arena, launcher: NamespaceLauncher, shared: tuple[Path, Controlled]
    ) -> None:
        # This gate knows nothing of that box, so it can't tell it by its network namespace.
        directory, controlled = shared
        victim = await arena.inmate("deny-all", id="victim")
        controlled.plane.store.create("victim", NetworkPolicy.parse("deny-all"), source="test")
        stranger = await launcher.create(BoxSpec("stranger", workdir=directory))
        agent, attacker = await start_agent(stranger)
        try:
            inmate = Inmate("stranger", stranger, agent, attacker)
            _refused(await python(inmate, _to(["/workspace/c.sock"], "victim")))
            assert arena.gated(victim).policy.policy == NetworkPolicy.parse("deny-all")
        finally:
            await attacker.close()
            await stranger.close()

    async def test_with_an_abstract_name(self, arena: Arena) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("\0adversary-control")
            listening.listen()
            controlled = Controlled(arena, InheritedAddress(os.dup(listening.fileno())), None)
            inmate = await arena.inmate("deny-all", id="abstract")
            ends = await python(inmate, _to(["\0adversary-control"], "abstract"))
            assert ends == ["ECONNREFUSED"]
            await controlled.plane.close()


def _refused(ends: object) -> None:
    assert isinstance(ends, list)
    assert ends != []
    for end in ends:
        assert end in {"EACCES", "EPERM"} or (end.startswith("HTTP/1.1 403") and "peer_refused" in end)


class TestPeersOnTheHost:
    """A neighbour of the gate's, or a page in a browser there, which the box may have sent a link to."""

    def _cases(self, controlled: Controlled) -> list[tuple[int, list[str], bytes]]:
        host, right = f"Host: {controlled.address}", f"Authorization: Bearer {TOKEN}"
        put = "PUT /v1/boxes/target/network-policy HTTP/1.1"
        json_type, length = "Content-Type: application/json", "Content-Length: 11"
        body = b'"allow-all"'
        return [
            (401, [put, host, json_type, length], body),
            (401, [put, host, json_type, length, "Authorization: Bearer "], body),
            (401, [put, host, json_type, length, f"Authorization: Bearer {TOKEN[:-1]}"], body),
            (401, [put, host, json_type, length, f"Authorization: Bearer {TOKEN}x"], body),
            (401, [put, host, json_type, length, f"Authorization: Basic {TOKEN}"], body),
            (401, [put, host, json_type, length, right, right], body),
            (401, [put, host, json_type, length, right, "X-Box-Api-Key: wrong"], body),
            (401, [put.replace("policy ", f"policy?token={TOKEN} "), host, json_type, length], body),
            (403, [put, host, json_type, length, right, "Origin: http://evil.test"], body),
            (403, [put, host, json_type, length, right, "Origin: null"], body),
            (421, [put, "Host: rebind.test:8081", json_type, length, right], body),
            (421, [put, "Host: evil.test", json_type, length, right], body),
            (415, [put, host, "Content-Type: text/plain", length, right], body),
            (405, [put.replace("PUT", "POST"), host, json_type, length, right], body),
            (404, ["GET /v1/boxes/target/network-policy/set HTTP/1.1", host, right], b""),
            (401, ["OPTIONS /v1/boxes HTTP/1.1", host, "Access-Control-Request-Method: PUT"], b""),
        ]

    async def test_change_nothing(self, arena: Arena, endpoints: list[Controlled]) -> None:
        controlled = endpoints[0]
        inmate = await arena.inmate("deny-all", id="target")
        controlled.plane.store.create("target", NetworkPolicy.parse("deny-all"), source="test")
        for expected, lines, body in self._cases(controlled):
            status, answer = await controlled.say(*lines, body=body)
            assert status == expected, (lines, answer)
            assert b"access-control" not in answer.lower()
            assert b"deny-all" not in answer
        arena.begin(inmate)
        assert arena.gated(inmate).policy.policy == NetworkPolicy.parse("deny-all")
        seen = await tls(plan.ALLOWED4, b"allowed.test")(inmate.attacker)
        assert str(seen) == "alert 49"
        assert arena.lab.packets() == []

    async def test_an_earlier_policy_put_again(self, arena: Arena, endpoints: list[Controlled]) -> None:
        # Overheard, or left in a queue: whoever says which generation it is meant for changes nothing late.
        controlled = endpoints[0]
        inmate = await arena.inmate(_OPEN, id="replayed")
        store = controlled.plane.store
        store.create("replayed", NetworkPolicy.parse(_OPEN), source="test")
        assert (await store.put("replayed", NetworkPolicy.parse("deny-all"), source="test")).generation == 2
        status, answer = await controlled.say(
            "PUT /v1/boxes/replayed/network-policy HTTP/1.1", f"Host: {controlled.address}",
            f"Authorization: Bearer {TOKEN}", 'If-Match: "1"', "Content-Type: application/json",
            "Content-Length: 11", body=b'"allow-all"',
        )  # fmt: skip
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert (status, error["code"]) == (412, "generation_stale")
        assert arena.gated(inmate).policy.policy == NetworkPolicy.parse("deny-all")

    async def test_metrics_name_nobody(self, arena: Arena, endpoints: list[Controlled]) -> None:
        inmate = await arena.inmate()
        arena.begin(inmate)
        before = await self._metrics(endpoints[0])
        for name in (f"{inmate.attacker.nonce}-{number}.evil.test" for number in range(20)):
            assert str(await tls(plan.EVIL4, name.encode())(inmate.attacker)) == "alert 49"
        after = await self._metrics(endpoints[0])
        assert after != before
        assert not [name for name in (inmate.attacker.nonce, "evil", plan.EVIL4, inmate.id) if name in after]
        assert len(after.splitlines()) <= len(before.splitlines()) + 1

    async def _metrics(self, controlled: Controlled) -> str:
        status, answer = await controlled.say(
            "GET /metrics HTTP/1.1", f"Host: {controlled.address}", f"Authorization: Bearer {TOKEN}"
        )
        assert status == 200
        return answer.decode()


class TestTheService:
    """``box-policy serve``, a process of its own, whose endpoint makes the very box that attacks it."""

    async def test_is_out_of_its_boxes_reach(self, running_lab: Lab) -> None:
        running_lab.reset()
        with Server("--name-server", plan.NAMESERVER4) as server:
            port = httpx.URL(server.url).port
            code = f"""
import socket
for address in ("127.0.0.1", "::1", {plan.GATE4!r}, {plan.GATE6!r}, "0.0.0.0", "10.0.2.2", {plan.EVIL4!r}):
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.settimeout(3)
    try:
        sock.connect((address, {port}))
        sock.sendall(b"GET /v2/box HTTP/1.1\\r\\nHost: 127.0.0.1:{port}\\r\\n"
                     b"X-Box-Api-Key: {server.key}\\r\\n\\r\\n")
        print(sock.recv(1000))
    except OSError as error:
        print(type(error).__name__)
"""
            output = await asyncio.to_thread(self._run_in_a_box, server, code)
            ends = output.split()
            assert len(ends) == 7
            assert set(ends) <= {"ConnectionRefusedError", "ConnectionResetError", "b''"}
            assert {packet.address for packet in running_lab.packets(protocol="tcp")} <= {plan.EVIL4}
            asked = running_lab.loopback_packets("127.0.0.1", port, protocol="tcp")
            assert len(asked) == 1, "only the test itself speaks to the service, on one connection"

    def _run_in_a_box(self, server: Server, code: str) -> str:
        box = server.create(network_policy={"mode": _OPEN})["id"]
        run: dict[str, Any] = server.ask("POST", f"/{box}/exec", {"command": ["python3", "-c", code]}).ok()
        return str(run["output"])
