"""A refused client of any make says what has happened: a TLS alert, not a broken connection, and at once."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, Inmate
from tests.adversary.attack import CUSTOM
from tests.adversary.attacker import Seen, interpreter
from tests.adversary.wire import hello
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
"""Where programs are that boxes have."""

GO_CLIENT: Final = """\
package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	_, err := tls.DialWithDialer(dialer, "tcp", os.Args[1], &tls.Config{ServerName: os.Args[2]})
	fmt.Println(err)
	os.Exit(1)
}
"""

type Argv = Callable[[str, str, int], Sequence[str]]
"""What to run for a name, an address and a port."""


def curl(name: str, address: str, port: int) -> Sequence[str]:
    return "curl", "-sS", "-m", "5", "--resolve", f"{name}:{port}:{address}", f"https://{name}:{port}/"


def python(name: str, address: str, port: int) -> Sequence[str]:
    source = (
        "import socket, ssl\n"
        f"sock = socket.create_connection(({address!r}, {port}), 5)\n"
        f"ssl.create_default_context().wrap_socket(sock, server_hostname={name!r})\n"
    )
    return interpreter() or "python3", "-c", source


def node(name: str, address: str, port: int) -> Sequence[str]:
    source = (
        f"require('tls').connect({{host: {address!r}, port: {port}, servername: {name!r}}})"
        ".on('error', error => { console.log(error.message); process.exit(1) })"
    )
    return "node", "-e", source


def openssl(name: str, address: str, port: int) -> Sequence[str]:
    return "openssl", "s_client", "-connect", f"{address}:{port}", "-servername", name


def openssl_with_tls_1_2(name: str, address: str, port: int) -> Sequence[str]:
    return *openssl(name, address, port), "-tls1_2"


def git(name: str, address: str, port: int) -> Sequence[str]:
    """On many systems over GnuTLS."""
    resolve = f"http.curloptResolve={name}:{port}:{address}"
    return "git", "-c", resolve, "ls-remote", f"https://{name}:{port}/x"


CLIENTS: Final[dict[Argv, tuple[str, str]]] = {
    curl: ("tlsv1 alert access denied", "tlsv1 alert internal error"),
    python: ("TLSV1_ALERT_ACCESS_DENIED", "TLSV1_ALERT_INTERNAL_ERROR"),
    node: ("SSL alert number 49", "SSL alert number 80"),
    openssl: ("SSL alert number 49", "SSL alert number 80"),
    openssl_with_tls_1_2: ("SSL alert number 49", "SSL alert number 80"),
    git: (": Access was denied|alert access denied", ": Internal error|alert internal error"),
}
"""What each says when it is denied, and when the upstream fails: alternatives."""


async def is_told(arena: Arena, inmate: Inmate, argv: Argv, expected: str, *, denied: bool) -> None:
    """Run a client in a box: it fails with those words, soon after the gate has decided."""
    arena.begin(inmate)
    case = ("evil.test", plan.EVIL4, 443) if denied else ("allowed.test", plan.ALLOWED4, plan.REFUSED_PORT)
    status, output = await inmate.attacker.program(*argv(*case))
    ended = time.time()
    assert status != 0
    assert any(words in output for words in expected.split("|")), output
    record = await arena.recorded(Reason.NAME_NOT_ALLOWED if denied else Reason.UPSTREAM_FAILED)
    assert ended - record.time < 1
    assert denied == (not arena.lab.packets())


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
async def test_a_denied_client_says_so(arena: Arena, client: Argv) -> None:
    if shutil.which(client("", "", 0)[0], path=SYSTEM_PATH) is None:
        pytest.skip(f"{client('', '', 0)[0]} isn't in a system directory")
    await is_told(arena, await arena.inmate(), client, CLIENTS[client][0], denied=True)


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
async def test_a_client_whose_upstream_fails_says_so(arena: Arena, client: Argv) -> None:
    if shutil.which(client("", "", 0)[0], path=SYSTEM_PATH) is None:
        pytest.skip(f"{client('', '', 0)[0]} isn't in a system directory")
    await is_told(arena, await arena.inmate(), client, CLIENTS[client][1], denied=False)


@pytest.fixture(scope="module")
def go_client() -> Iterator[Path]:
    """A static program, which runs in any box."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("go isn't installed")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        source = Path(directory, "client.go")
        source.write_text(GO_CLIENT)
        subprocess.run(
            [go, "build", "-o", f"{directory}/client", source],
            env=os.environ | {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOTOOLCHAIN": "local"},
            check=True,
        )
        yield Path(directory, "client")


class TestGo:
    """Go's crypto/tls hangs up on what doesn't look like TLS to it, and then says nothing of an alert."""

    @pytest.mark.parametrize("denied", [True, False], ids=["denied", "failed"])
    async def test_itself(self, arena: Arena, go_client: Path, denied: bool) -> None:
        inmate = await arena.inmate(CUSTOM, "go", read_only=[go_client.parent])
        expected = "remote error: tls: access denied" if denied else "remote error: tls: internal error"
        await is_told(
            arena,
            inmate,
            lambda name, address, port: (str(go_client), f"{address}:{port}", name),
            expected,
            denied=denied,
        )

    @pytest.mark.parametrize(
        ("name", "port", "expected"),
        [
            (b"evil.test", 443, "remote error: tls: alert 49"),
            (None, 443, "remote error: tls: alert 49"),
            (b"allowed.test", plan.REFUSED_PORT, "remote error: tls: alert 80"),
            (b"gone.wild.test", 443, "remote error: tls: alert 80"),
        ],
    )
    async def test_as_one_so_strict(self, arena: Arena, name: bytes | None, port: int, expected: str) -> None:
        inmate = await arena.inmate()
        arena.begin(inmate)
        arena.lab.dns.set("gone.wild.test", rcode="NXDOMAIN")
        data = hello(inmate.attacker, name)
        assert as_go_reads(await inmate.attacker.exchange(plan.ALLOWED4, port, data)) == expected


def as_go_reads(seen: Seen) -> str:
    """What ``Conn.readRecordOrCCS`` of Go's crypto/tls (conn.go) makes of the first record that it gets in
    answer to its hello: of the checks there, in their order, those that an alert has to pass."""
    data = seen.data
    if len(data) < 5:
        return "EOF"
    kind, version, length = data[0], int.from_bytes(data[1:3]), int.from_bytes(data[3:5])
    if kind == 0x80:
        return "tls: unsupported SSLv2 handshake received"
    # "First message, be extra suspicious: this might not be a TLS client."
    if kind not in (0x15, 0x16) or version >= 0x1000:
        return "tls: first record does not look like a TLS handshake"
    if length > 16384 + 2048:
        return "tls: oversized record received"
    content = data[5 : 5 + length]
    if len(content) < length:
        return "unexpected EOF"
    if kind != 0x15 or length != 2:
        return "local error: tls: unexpected message"
    level, description = content
    if description == 0:  # close_notify
        return "EOF"
    if level != 2:  # a warning is left out; then there has to be more
        return "EOF"
    return f"remote error: tls: alert {description}"
