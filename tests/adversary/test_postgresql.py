"""PostgreSQL's SSLRequest: TLS with a name to judge, never a downgrade, and nothing in the clear.

The client asks for TLS before it names its server. The gate answers that there will be TLS, judges the name,
and makes sure that the server says so too before the client's hello goes there.
"""

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
import trustme

from box_policy.audit.records import Event, Protocol
from box_policy.gate.limits import Limits
from box_policy.policy.reasons import Reason
from box_policy.wire.postgresql import SSL_REQUEST
from tests.adversary.arena import Arena, Inmate, ids
from tests.adversary.attack import CUSTOM, Act, Attack
from tests.adversary.attacker import Attacker, Seen
from tests.adversary.conftest import OpenArena
from tests.adversary.wire import hello, sends
from tests.lab import Lab, plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "PostgreSQL"
PORT: Final = 5432
STARTUP: Final = bytes.fromhex("0000001300030000") + b"user\0evil\0\0"
CANCEL: Final = bytes.fromhex("0000001004d2162e") + bytes(8)
GSS_REQUEST: Final = bytes.fromhex("0000000804d21630")


def behind_the_request(address: str, data: Callable[[Attacker], bytes]) -> Act:
    """Send an SSLRequest, wait for the answer, go on with the data, and read to the end."""

    async def act(box: Attacker) -> Seen:
        line = await box.connect(address, PORT)
        await line.send(SSL_REQUEST)
        answer = await line.read(size=1)
        if answer.data == b"S":
            await line.send(data(box))
            answer = await line.see()
        await line.close()
        return answer

    return act


ATTACKS = [
    Attack(
        name="a name that is not allowed behind an SSLRequest",
        act=behind_the_request(plan.EVIL4, lambda box: hello(box, b"evil.test")),
        sees="alert 49",
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Attack(
        name="no name behind an SSLRequest",
        act=behind_the_request(plan.EVIL4, lambda box: hello(box, None)),
        sees="alert 49",
        reasons=(Reason.NO_NAME,),
    ),
    Attack(
        name="an SSLRequest under deny-all",
        act=behind_the_request(plan.ALLOWED4, lambda box: hello(box, b"allowed.test")),
        policy="deny-all",
        sees="alert 49",
        reasons=(Reason.DENY_ALL,),
    ),
    Attack(
        name="an SSLRequest to a special address",
        act=behind_the_request(plan.METADATA4, lambda box: hello(box, b"allowed.test")),
        sees="reset",
        reasons=(Reason.SPECIAL_ADDRESS,),
    ),
    Attack(
        name="plain text behind an accepted SSLRequest",
        act=behind_the_request(plan.EVIL4, lambda box: STARTUP + box.nonce.encode()),
        sees="alert 49",
        reasons=(Reason.HELLO_INVALID,),
    ),
    Attack(
        name="a request over HTTP behind an accepted SSLRequest",
        act=behind_the_request(plan.EVIL4, lambda box: b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n"),
        sees="alert 49",
        reasons=(Reason.HELLO_INVALID,),
    ),
    Attack(
        name="a second SSLRequest behind the first",
        act=behind_the_request(plan.EVIL4, lambda box: SSL_REQUEST),
        sees="alert 49",
        reasons=(Reason.HELLO_INVALID,),
    ),
    Attack(
        name="a hello glued to the SSLRequest",
        act=sends(plan.EVIL4, PORT, lambda box: SSL_REQUEST + hello(box, b"allowed.test")),
        sees="reset",
        reasons=(Reason.PROTOCOL_UNKNOWN,),
    ),
    *(
        Attack(
            name=f"{what} in the clear",
            act=sends(plan.EVIL4, PORT, lambda box, first=first: first + box.nonce.encode()),  # type: ignore[misc]
            sees="reset",
            reasons=(Reason.PROTOCOL_UNKNOWN,),
        )
        for what, first in (
            ("a StartupMessage", STARTUP),
            ("a CancelRequest", CANCEL),
            ("a GSSENCRequest", GSS_REQUEST),
        )
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)


# What a server in the place of PostgreSQL's may answer.


@asynccontextmanager
async def server(lab: Lab, answer: bytes | None, *, close: bool = False) -> AsyncIterator[list[bytes]]:
    """A server at the origin that answers what it hears first; the list has all that each client sent."""
    received: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        received.append(b"")
        while data := await reader.read(65536):
            received[-1] += data
            if answer is not None and received[-1] == SSL_REQUEST:
                writer.write(answer)
            if close:
                break
        writer.close()

    listening = await asyncio.start_server(serve, sock=lab.listen(PORT))
    try:
        yield received
    finally:
        listening.close()
        for writer in writers:
            writer.transport.abort()
        await listening.wait_closed()


UNWILLING = {
    "refuses TLS": b"N",
    "sends an error": b"E\0\0\0\x0cSFATAL\0\0",
    "sends more than the answer": b"SN",
    "sends TLS at once": b"\x15\x03\x03\x00\x02\x02\x28",
}


@pytest.mark.parametrize("answer", UNWILLING.values(), ids=UNWILLING)
async def test_a_server_that(arena: Arena, lab: Lab, answer: bytes) -> None:
    inmate = await arena.inmate()
    arena.begin(inmate)
    async with server(lab, answer) as received:
        act = behind_the_request(plan.ALLOWED4, lambda box: hello(box, b"allowed.test"))
        seen = await act(inmate.attacker)
        await arena.rest(inmate)
    assert str(seen) == "alert 80"
    assert received == [SSL_REQUEST], "the client's hello has gone to a server that doesn't speak TLS"
    end = arena.records[-1]
    assert (end.event, end.reason, end.protocol) == (Event.END, Reason.UPSTREAM_FAILED, Protocol.POSTGRESQL)
    assert "answered the SSLRequest with" in end.detail


async def test_a_server_that_closes_the_connection(arena: Arena, lab: Lab) -> None:
    inmate = await arena.inmate()
    arena.begin(inmate)
    async with server(lab, None, close=True) as received:
        act = behind_the_request(plan.ALLOWED4, lambda box: hello(box, b"allowed.test"))
        assert str(await act(inmate.attacker)) == "alert 80"
    assert received == [SSL_REQUEST]
    assert arena.records[-1].detail.endswith("the server closed the connection")


async def test_a_server_that_never_answers(open_arena: OpenArena, lab: Lab) -> None:
    arena = await open_arena(limits=Limits(connect_timeout=0.3))
    inmate = await arena.inmate()
    lab.dns.set("allowed.test", A=[plan.ALLOWED4])
    async with server(lab, None) as received:
        act = behind_the_request(plan.ALLOWED4, lambda box: hello(box, b"allowed.test"))
        assert str(await act(inmate.attacker)) == "alert 80"
    assert received == [SSL_REQUEST]


async def test_the_policy_changes_while_the_server_is_asked(arena: Arena, lab: Lab) -> None:
    inmate = await arena.inmate(CUSTOM, id="changing")
    arena.begin(inmate)
    async with server(lab, None) as received:
        line = await inmate.attacker.connect(plan.ALLOWED4, PORT)
        await line.send(SSL_REQUEST)
        await line.read(size=1)
        await line.send(hello(inmate.attacker, b"allowed.test"))
        await lab.expect_async(lambda: lab.packets(plan.ALLOWED4, PORT))
        async with asyncio.timeout(5):
            while not received or not received[0]:
                await asyncio.sleep(0.01)  # the server has no other way to say that it was asked
        assert arena.put_policy(inmate, "deny-all") == 1
        assert str(await line.see()) == "reset"
    assert received == [SSL_REQUEST]


async def test_a_request_in_pieces_is_understood(arena: Arena, lab: Lab) -> None:
    inmate = await arena.inmate()
    arena.begin(inmate)
    async with server(lab, b"S") as received:
        line = await inmate.attacker.connect(plan.EVIL4, PORT)
        await line.send(SSL_REQUEST, segment=1, pause=0.002)
        assert (await line.read(size=1)).data == b"S"
        sent = hello(inmate.attacker, b"allowed.test", fragment=7)
        await line.send(sent, segment=11, pause=0.001)
        await lab.expect_async(lambda: lab.packets(plan.ALLOWED4, PORT))
        async with asyncio.timeout(5):
            while received != [SSL_REQUEST + sent]:
                await asyncio.sleep(0.01)
        await line.close()
    assert lab.packets(plan.EVIL4) == []


async def test_half_a_request_has_only_so_much_time(open_arena: OpenArena, lab: Lab) -> None:
    arena = await open_arena(limits=Limits(verdict_timeout=0.3))
    inmate = await arena.inmate()
    assert str(await inmate.attacker.exchange(plan.EVIL4, PORT, SSL_REQUEST[:7])) == "reset"
    assert arena.denials() == [Reason.TIMEOUT]


# The real programs.


@dataclass(frozen=True)
class Database:
    """A real server at the origin, under the names allowed.test and evil.test."""

    lab: Lab
    authority: bytes
    log: Path


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [
        Path(path) for path in [shutil.which("initdb")] if path
    ]
    if not found or not (found[-1].parent / "psql").exists():
        pytest.skip("no PostgreSQL server and client on this machine: apt install postgresql")
    return found[-1].parent


@pytest.fixture(scope="module")
def database(running_lab: Lab) -> Iterator[Database]:
    binaries = _binaries()
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        pytest.skip("PostgreSQL's server takes no user without a name")
    with tempfile.TemporaryDirectory(prefix="box-policy-postgresql-") as name:
        directory = Path(name)
        authority = trustme.CA()
        certificate = authority.issue_cert("allowed.test", "evil.test")
        (directory / "key.pem").write_bytes(certificate.private_key_pem.bytes())
        (directory / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
        (directory / "key.pem").chmod(0o600)
        owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None  # the server refuses to run as root
        for path in (directory, directory / "key.pem", directory / "cert.pem"):
            if owner is not None:
                os.chown(path, owner.pw_uid, owner.pw_gid)

        def as_owner() -> None:
            if owner is not None:
                os.setgroups([])
                os.setgid(owner.pw_gid)
                os.setuid(owner.pw_uid)

        def at_origin() -> None:
            running_lab.move_to_origin()
            as_owner()

        data, log = directory / "data", directory / "log"
        made = subprocess.run(
            [
                f"{binaries}/initdb",
                "-D",
                str(data),
                "-U",
                "someone",
                "-A",
                "trust",
                "-N",
                "--no-instructions",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            preexec_fn=as_owner,
            cwd="/",
        )
        assert made.returncode == 0, made.stderr.decode()
        with (data / "pg_hba.conf").open("a") as hba:
            hba.write("host all all all trust\n")
        settings = {
            "listen_addresses": "*", "port": PORT, "unix_socket_directories": "", "ssl": "on", "fsync": "off",
            "ssl_key_file": directory / "key.pem", "ssl_cert_file": directory / "cert.pem",
            "log_connections": "on",
        }  # fmt: skip
        options = [f"-c{name}={value}" for name, value in settings.items()]
        with log.open("wb") as output:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, *options], stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, preexec_fn=at_origin, cwd="/",
            )  # fmt: skip
        try:
            _await_line(log, server, "ready to accept connections")
            yield Database(running_lab, authority.cert_pem.bytes(), log)
        finally:
            server.terminate()
            server.wait(20)


def _await_line(log: Path, server: subprocess.Popen[bytes], line: str) -> None:
    deadline = time.monotonic() + 20
    while line not in log.read_text(errors="replace"):
        assert server.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.02)  # it says so in its log alone


@pytest_asyncio.fixture(loop_scope="module")
async def client(arena: Arena, database: Database) -> Inmate:
    inmate = await arena.inmate()
    arena.begin(inmate)
    await inmate.box.files.write("/workspace/ca.pem", database.authority)
    return inmate


async def psql(inmate: Inmate, settings: str) -> tuple[int, str]:
    connection = f"user=someone dbname=postgres port={PORT} connect_timeout=10 {settings}"
    query = "select ssl from pg_stat_ssl where pid = pg_backend_pid()"
    return await inmate.attacker.program(
        str(_binaries() / "psql"), "-XwAt", "-c", query, connection, environment={"HOME": "/tmp"}
    )


VERIFIED = "sslmode=verify-full sslrootcert=/workspace/ca.pem"


class TestPsql:
    async def test_an_allowed_name(self, client: Inmate, arena: Arena, lab: Lab) -> None:
        assert await psql(client, f"host=allowed.test {VERIFIED}") == (0, "t\n")
        await arena.rest(client)
        decision = next(r for r in arena.records if r.protocol is Protocol.POSTGRESQL)
        assert (decision.allowed, decision.name, decision.reason) == (
            True,
            "allowed.test",
            Reason.NAME_ALLOWED,
        )

    async def test_an_allowed_name_at_a_foreign_address(self, client: Inmate, lab: Lab) -> None:
        said = await psql(client, f"host=allowed.test hostaddr={plan.EVIL4} {VERIFIED}")
        assert said == (0, "t\n")
        assert lab.packets(plan.EVIL4) == []

    @pytest.mark.parametrize("mode", ["prefer", "require", "verify-full"])
    async def test_a_denied_name(self, client: Inmate, arena: Arena, lab: Lab, mode: str) -> None:
        """``prefer``, the default, tries it in the clear when TLS fails: that fails as well."""
        status, said = await psql(
            client, f"host=evil.test hostaddr={plan.EVIL4} sslmode={mode} sslrootcert=/workspace/ca.pem"
        )
        assert status == 2
        assert "access denied" in said
        await arena.rest(client)
        assert lab.packets(plan.EVIL4) == []
        expected = [Reason.NAME_NOT_ALLOWED, *([Reason.PROTOCOL_UNKNOWN] if mode == "prefer" else [])]
        assert arena.denials() == sorted(expected)

    async def test_without_a_name(self, client: Inmate, arena: Arena, lab: Lab) -> None:
        status, said = await psql(
            client, f"host=allowed.test hostaddr={plan.ALLOWED4} sslsni=0 sslmode=require"
        )
        assert (status, "access denied" in said) == (2, True)
        assert arena.denials() == [Reason.NO_NAME]
        assert lab.packets(port=PORT) == []

    async def test_in_the_clear(self, client: Inmate, arena: Arena, lab: Lab) -> None:
        status, _ = await psql(client, f"host=allowed.test hostaddr={plan.ALLOWED4} sslmode=disable")
        assert status == 2
        assert arena.denials() == [Reason.PROTOCOL_UNKNOWN]
        assert lab.packets(port=PORT) == []

    async def test_in_the_clear_to_an_allowed_range(self, client: Inmate, lab: Lab) -> None:
        said = await psql(client, f"host={plan.CIDR4} sslmode=disable")
        assert said == (0, "f\n")
