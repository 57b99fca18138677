"""What breaks, closes: a fault at each hook, at the resolver, the records, the store; the gate's own end.

Every place that an exchange passes can be made to fail: ``python -m tests.adversary.sweep_all`` does so, and
takes some minutes. Here are the seams that everything else rests on.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from mitmproxy.io import FlowWriter
from mitmproxy.test import tflow

from box_policy.audit.records import Event
from box_policy.audit.sinks import JsonLines
from box_policy.gate.destination import original_destination
from box_policy.gate.limits import Limits
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import CompiledPolicy
from tests.adversary.arena import Arena
from tests.adversary.conftest import OpenArena
from tests.adversary.exchanges import EXCHANGES, Exchange
from tests.adversary.faults import Place, fault
from tests.adversary.rig import DNS_PORT, TCP_PORT, Rig
from tests.adversary.sweep import Sweep
from tests.adversary.wire import allowed_tls, http, request, tls
from tests.gate.mitmdump import MITMDUMP, PORT, ROOT, Mitmdump
from tests.gate.redirect import marked, redirected
from tests.lab import Lab, plan
from tests.lab.hellos import client_hello

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEAMS: Final = {
    "a hello with an allowed name": (
        "gate/destination.py original_destination",
        "gate/arrival.py Arrival.__init__",
        "gate/arrival.py Arrival.begin",
        "gate/own_addresses.py OwnAddresses.__contains__",
        "wire/client_hello.py ClientHelloReader.feed",
        "policy/domains.py name_from_wire",
        "policy/rules.py CompiledPolicy.judge_name",
        "gate/resolver.py Resolver.resolve",
        "gate/resolver.py Resolver._ask_and_keep",
        "gate/name_server.py ask_name_server",
        "policy/rules.py CompiledPolicy.judge_resolution",
        "audit/sinks.py Audit.__call__",
        "gate/dial.py Dial.begin",
        "gate/dial.py Relayed.begin",
        "gate/relay.py Relay.start",
        "gate/relay.py Pair.update",
        "gate/relay.py Pair.close",
    ),
    "a hello with a name that is not allowed": (
        "gate/claim.py Claim.decision",
        "gate/farewell.py Farewell.begin",
        "gate/poller.py Poller.unregister",
    ),
    "a request to an allowed host": (
        "gate/embedded.py EmbeddedGate._take_http",
        "gate/http_door.py HttpDoor._serve",
        "gate/http.py HttpHandler.handle_client",
        "gate/http.py HttpHandler._handle_hook",
        "gate/http_layer.py StrictHttp1Server.read_headers",
        "gate/http.py HttpHandler._judge",
        "gate/http.py HttpHandler._let_through",
        "gate/http_layer.py GateHttpLayer.get_connection",
        "gate/http_dialling.py DiallingHandler._dial",
        "gate/http_layer.py StrictHttp1Client.read_headers",
        "gate/readers.py CountingReader.read",
    ),
    "a second request to a host that is not allowed": (
        "gate/http.py HttpHandler._refuse",
        "gate/http.py HttpHandler.response_for",
    ),
    "bytes to an allowed address": ("gate/relay.py Relay._copy", "gate/relay.py Relay._finish"),
    "a question that is not allowed": (
        "wire/dns_message.py read_question",
        "policy/rules.py CompiledPolicy.judge_question",
        "wire/dns_message.py write_answer",
    ),
    "an allowed question": (
        "gate/resolver.py Resolver._ask_upstream",
        "gate/dns.py DnsServer._answer_addresses",
    ),
    "questions over TCP": ("gate/dns.py DnsServer._serve_connection", "gate/dns.py DnsServer._judge_and_ask"),
    "a policy that allows nothing any more": (
        "gate/boxes.py GatedBox.put_policy",
        "gate/claim.py Claim.judge_again",
        "gate/http.py HttpHandler._cut",
    ),
    "a box that goes away": ("gate/gate.py Gate.leave", "gate/arrival.py Arrival.cut"),
}  # fmt: skip
"""Of each exchange, functions that are made to fail when they are first called."""

LASTING: Final = (
    "audit/sinks.py Audit.__call__",
    "gate/resolver.py Resolver.ask",
    "policy/rules.py CompiledPolicy._blocked",
    "policy/rules.py Verdict.__post_init__",
)
"""What fails each time."""


def named(name: str) -> Exchange:
    return next(exchange for exchange in EXCHANGES if exchange.name == name)


@pytest.fixture
def redirect(running_lab: Lab) -> Iterator[None]:
    with redirected(TCP_PORT, DNS_PORT):
        yield


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def sweep(running_lab: Lab) -> AsyncIterator[Sweep]:
    sweep = Sweep(running_lab)
    yield sweep
    await sweep.close()


@pytest.mark.usefixtures("redirect")
class TestOneFault:
    @pytest.mark.parametrize("exchange", [named(name) for name in SEAMS], ids=str)
    async def test_at_a_seam(self, sweep: Sweep, exchange: Exchange) -> None:
        places = {place.where: place for place in await sweep.places(exchange)}
        wrong: dict[str, object] = {}
        for where in SEAMS[exchange.name]:
            run = await sweep.inject(exchange, places[where])
            assert run.raised
            wrong |= {where: (run.wrong, run.seen, run.reasons)} if run.wrong else {}
        assert wrong == {}

    @pytest.mark.parametrize("error", [MemoryError, asyncio.CancelledError], ids=lambda error: error.__name__)
    async def test_of_another_kind(self, sweep: Sweep, error: type[BaseException]) -> None:
        exchange = named("a request to an allowed host")
        places = {place.where: place for place in await sweep.places(exchange)}
        for where in ("gate/http.py HttpHandler._judge", "gate/http_upstreams.py Upstreams.dial"):
            run = await sweep.inject(exchange, places[where], error=error)
            assert (run.raised, run.wrong) == (True, [])


@pytest.mark.usefixtures("redirect")
class TestLastingFault:
    @pytest.mark.parametrize(
        "name",
        [
            "a hello with an allowed name",
            "a request to an allowed host",
            "bytes to an allowed address",
            "an allowed question",
        ],
    )
    async def test_denies(self, sweep: Sweep, name: str) -> None:
        exchange = named(name)
        places = {place.where: place for place in await sweep.places(exchange)}
        for where in LASTING:
            if where in places:
                run = await sweep.inject(exchange, places[where], call=None)
                assert (where, run.wrong) == (where, [])
                assert run.seen != list(exchange.sees)
                assert not run.dialled


class TestInABox:
    """The same from within a real box."""

    async def test_a_policy_that_raises(self, arena: Arena) -> None:
        inmate = await arena.inmate()
        arena.begin(inmate)
        with fault(Place(CompiledPolicy.judge_name.__code__), call=None):
            assert str(await tls(plan.ALLOWED4, b"allowed.test")(inmate.attacker)) == "reset"
            assert str(await http(plan.ALLOWED4, b"allowed.test")(inmate.attacker)) == "http 502"
        assert arena.denials() == [Reason.INTERNAL_ERROR] * 2
        assert arena.lab.packets() == []
        arena.errors.clear()
        assert str(await allowed_tls(plan.ALLOWED4, b"allowed.test")(inmate.attacker)) == "data"

    async def test_a_destination_that_the_kernel_does_not_tell(self, arena: Arena) -> None:
        inmate = await arena.inmate()
        arena.begin(inmate)
        with fault(Place(original_destination.__code__), call=None, error=FileNotFoundError):
            assert str(await tls(plan.CIDR4, b"allowed.test")(inmate.attacker)) == "reset"
        assert arena.denials() == [Reason.SPECIAL_ADDRESS]
        assert arena.lab.packets() == []

    async def test_a_name_server_that_is_gone(self, open_arena: OpenArena) -> None:
        arena = await open_arena(name_servers=("127.0.0.1",))
        inmate = await arena.inmate()
        box = inmate.attacker
        assert str(await tls(plan.ALLOWED4, b"allowed.test")(box)) == "alert 80"
        assert str(await http(plan.ALLOWED4, b"allowed.test")(box)) == "http 502"
        asked = await box.datagram(plan.NAMESERVER4, 53, Rig.question("allowed.test"))
        assert asked.data[3] & 0xF == 2, "SERVFAIL"
        assert arena.denials() == [Reason.RESOLUTION_FAILED] * 3
        assert arena.lab.packets() == []
        assert (await (await box.connect(plan.CIDR4, plan.BANNER_PORT)).read(size=7)).data == b"SSH-2.0"

    @pytest.mark.parametrize("days", [-36500, -1, 1, 36500])
    async def test_a_clock_that_is_set(
        self, arena: Arena, monkeypatch: pytest.MonkeyPatch, days: int
    ) -> None:
        inmate = await arena.inmate()
        arena.begin(inmate)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + days * 86400)
        assert str(await tls(plan.EVIL4, b"evil.test")(inmate.attacker)) == "alert 49"
        assert str(await http(plan.ALLOWED4, b"allowed.test")(inmate.attacker)) == "http 200"
        assert arena.denials() == [Reason.NAME_NOT_ALLOWED]
        end = next(record for record in arena.records if record.event is Event.END)
        assert 0 <= (end.duration or -1) < 60
        assert all(record.as_json() for record in arena.records)

    @pytest.mark.parametrize(
        ("path", "flags"), [("/dev/full", os.O_WRONLY), (os.devnull, os.O_RDONLY)],
        ids=["a full disk", "a disk that can't be written to"],
    )  # fmt: skip
    async def test_a_log_on(self, open_arena: OpenArena, tmp_path: Path, path: str, flags: int) -> None:
        arena = await open_arena()
        inmate = await arena.inmate()
        log = JsonLines(tmp_path / "log")
        arena.audit.add(log)
        good, bad = os.dup(log._fd), os.open(path, flags)
        try:
            os.dup2(bad, log._fd)
            assert str(await tls(plan.EVIL4, b"evil.test")(inmate.attacker)) == "alert 49"
            async with asyncio.timeout(5):
                while log.lost == 0:
                    await asyncio.sleep(0.01)  # it writes in a thread of its own
            assert arena.lab.packets() == []
            assert str(await http(plan.ALLOWED4, b"allowed.test")(inmate.attacker)) == "http 200"
            os.dup2(good, log._fd)
            assert str(await tls(plan.EVIL4, b"evil.test")(inmate.attacker)) == "alert 49"
        finally:
            log.close()
            os.close(good)
            os.close(bad)
        assert '{"event":"lost","records":' in (tmp_path / "log").read_text()

    async def test_a_dial_that_is_cancelled(self, open_arena: OpenArena) -> None:
        arena = await open_arena()
        inmate = await arena.inmate()
        line = await inmate.attacker.connect(plan.ALLOWED4, plan.SILENT_PORT)
        await line.send(request(inmate.attacker, f"allowed.test:{plan.SILENT_PORT}".encode()))
        async with asyncio.timeout(5):
            while not (dials := [task for task in asyncio.all_tasks() if "server conn" in task.get_name()]):
                await asyncio.sleep(0.01)  # mitmproxy announces it in no other way
        dials[0].cancel()
        assert str(await line.read(timeout=2)) == "reset"
        assert [record.reason for record in arena.records] == [Reason.NAME_ALLOWED, Reason.INTERNAL_ERROR]
        await arena.rest(inmate)


class TestClock:
    async def test_set_back_keeps_nothing_open(
        self, running_lab: Lab, sweep: Sweep, redirect: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await sweep.close()
        rig = await Rig.open(running_lab, Limits(http_idle_timeout=1))
        rig.begin()
        client = await rig.connect(plan.EVIL4, 80)
        await client.send(rig.request("allowed.test"))
        assert (await client.response()).code == 200
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() - 3600)
        assert (await client.read(patience=5)).ended in ("eof", "reset")
        await rig.close()


POLICY: Final = f"mode: custom\nallowed_domains: [allowed.test]\nallowed_cidrs: [{plan.CIDR}]\n"
HOSTILE: Final = f"""\
connection_strategy: eager
rawtcp: true
validate_inbound_headers: false
store_streamed_bodies: true
block_global: true
ignore_hosts: ['.*']
tcp_hosts: ['.*']
udp_hosts: ['.*']
keep_host_header: true
strip_ech: false
ssl_insecure: true
onboarding: true
upstream_cert: true
connect_addr: 127.0.0.1
server_replay_extra: forward
map_remote: ['|http://allowed.test/mapped|http://evil.test/', '|http://allowed.test/dialled|http://{plan.EVIL4}/']
modify_headers: ['/~u sent-on/Host/evil.test']
client_replay: [DIRECTORY/flows]
"""
"""Of mitmproxy's own options, those that carry traffic past addons, or elsewhere."""

PROBE: Final = """\
from mitmproxy import ctx

def running():
    options = ctx.options
    print("in force:", options.connection_strategy, options.block_global, options.store_streamed_bodies,
          options.validate_inbound_headers, flush=True)
"""
BROKEN: Final = """\
from box_policy.gate.addon import EgressPolicy

def broken(*_):
    raise RuntimeError("a bug")

EgressPolicy.HOOK = broken
"""


def tell(address: str, port: int, data: bytes, patience: float = 10) -> bytes:
    """Send, and read to the end, or as long as there is patience; empty after a reset."""
    received = b""
    with marked(socket.SOCK_STREAM, address) as sock:
        sock.settimeout(patience)
        try:
            sock.connect((address, port))
            sock.sendall(data)
            while piece := sock.recv(65536):
                received += piece
        except (TimeoutError, ConnectionError):
            pass
    return received


def get(host: str, path: str = "/") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.skipif(not MITMDUMP.exists(), reason="mitmdump isn't beside this Python")
class TestMitmdump:
    """In a process of its own. That its file may be spoiled while it runs is in tests/gate/test_addon.py."""

    @pytest.fixture
    def start(self, lab: Lab, tmp_path: Path) -> Iterator[Callable[..., Mitmdump]]:
        started: list[Mitmdump] = []

        def start(*options: str, script: str = "") -> Mitmdump:
            """``script``: another, loaded before."""
            more = ["--set", f"box_policy_name_servers={lab.nameserver}", *options]
            if script:
                (tmp_path / "more.py").write_text(script)
                more += ["-s", str(tmp_path / "more.py")]
            started.append(Mitmdump(tmp_path, POLICY, more))
            started[-1].wait_for("Proxy listening" if "--mode" in options else "box-policy gate listening")
            return started[-1]

        with redirected(PORT):
            yield start
        for mitmdump in started:
            mitmdump.stop()

    def holds(self, lab: Lab) -> None:
        """What isn't allowed is denied, and what is goes where it should."""
        assert tell(plan.EVIL4, 443, client_hello(b"evil.test")) == bytes.fromhex("15030300020231")
        assert tell(plan.EVIL4, 80, get("evil.test")).startswith(b"HTTP/1.1 403")
        assert tell(plan.EVIL4, plan.ECHO_PORT, b"raw bytes\n") == b""
        assert tell(plan.PRIVATE4, 80, get("allowed.test")) == b""
        assert lab.packets() == []
        assert tell(plan.EVIL4, 80, get("allowed.test")).startswith(b"HTTP/1.1 200")
        assert lab.packets(plan.EVIL4) == []

    async def test_without_assertions(
        self, start: Callable[..., Mitmdump], lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PYTHONOPTIMIZE", "1")
        start()
        self.holds(lab)

    async def test_with_hostile_options(
        self, start: Callable[..., Mitmdump], lab: Lab, tmp_path: Path
    ) -> None:
        with (tmp_path / "flows").open("wb") as file:
            flow = tflow.tflow(resp=True)
            flow.request.host, flow.request.port = plan.EVIL4, 80
            FlowWriter(file).add(flow)
        (tmp_path / "config.yaml").write_text(HOSTILE.replace("DIRECTORY", str(tmp_path)))
        mitmdump = start(script=PROBE)
        mitmdump.wait_for("in force: lazy False False True")
        mitmdump.wait_for("no verdict")  # what it replays
        self.holds(lab)
        for path in ("/mapped", "/dialled", "/sent-on"):
            # Judged as it was changed; or changed later, and then there is no verdict to dial by.
            assert tell(plan.ALLOWED4, 80, get("allowed.test", path)).split()[1] in (b"403", b"502"), path
        assert tell(plan.ALLOWED4, 80, get("mitm.it")).startswith(b"HTTP/1.1 403")
        assert lab.packets(plan.EVIL4) == []
        assert [request.target for request in lab.requests()] == ["/"]

    @pytest.mark.parametrize(
        ("hook", "mode"), [("client_connected", ("--mode", "transparent")), ("server_connect", ())]
    )
    async def test_with_a_hook_that_raises(
        self, start: Callable[..., Mitmdump], lab: Lab, hook: str, mode: tuple[str, ...]
    ) -> None:
        start(*mode, script=BROKEN.replace("HOOK", hook))
        for address, port, data in (
            (plan.EVIL4, 443, client_hello(b"evil.test")),
            (plan.ALLOWED4, 443, client_hello(b"evil.test")),
            (plan.EVIL4, 80, get("evil.test")),
            (plan.EVIL4, plan.ECHO_PORT, b"raw bytes\n"),
            (plan.PRIVATE4, 80, get("allowed.test")),
        ):
            tell(address, port, data, patience=0.5)
        assert lab.packets() == []

    async def test_stopped_killed_and_started_again(self, start: Callable[..., Mitmdump], lab: Lab) -> None:
        mitmdump = start()
        with (
            marked(socket.SOCK_STREAM, plan.CIDR4) as relayed,
            marked(socket.SOCK_STREAM, plan.EVIL4) as late,
        ):
            relayed.connect((plan.CIDR4, plan.ECHO_PORT))
            relayed.sendall(b"x")
            assert relayed.recv(1) == b"x"
            mitmdump.process.send_signal(signal.SIGSTOP)
            late.settimeout(0.3)
            late.connect((plan.EVIL4, 443))
            late.sendall(client_hello(b"allowed.test"))
            with pytest.raises(TimeoutError):
                late.recv(1)
            relayed.sendall(b"y")
            assert lab.packets(plan.ALLOWED4) == []
            assert lab.connections(plan.CIDR4)[0].received == b"x"
            mitmdump.process.kill()
            mitmdump.process.wait()
            with pytest.raises(ConnectionResetError):
                late.settimeout(5)
                late.recv(1)
            lab.expect(lambda: lab.connections(plan.CIDR4)[0].closed)
        lab.reset()
        for address, port in ((plan.EVIL4, 443), (plan.ALLOWED4, 80), (plan.CIDR4, plan.ECHO_PORT)):
            with marked(socket.SOCK_STREAM, address) as sock, pytest.raises(ConnectionRefusedError):
                sock.connect((address, port))
        assert lab.packets() == []
        start()
        self.holds(lab)


class TestRun:
    async def test_killed_takes_its_box_along(self, lab: Lab) -> None:
        program = (
            f"import socket; s = socket.create_connection(('{plan.CIDR4}', {plan.ECHO_PORT}))\n"
            "while True: s.sendall(b'x'); s.recv(1)"
        )
        command = [
            sys.executable,
            "-m",
            "box_policy",
            "run",
            "--allow-cidr",
            plan.CIDR,
            "--",
            "python3",
            "-c",
            program,
        ]
        gate = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT)
        try:
            lab.expect(lambda: any(connection.received for connection in lab.connections(plan.CIDR4)), 20)
        finally:
            gate.kill()
            gate.wait()
        lab.expect(lambda: lab.connections(plan.CIDR4)[0].closed)
        last = len(lab.packets())
        await asyncio.sleep(0.2)  # nothing happens, of which no event tells
        assert len(lab.packets()) == last
        assert len(lab.connections()) == 1
