"""The addon in a real mitmdump: behind a redirect, in both modes, and when it is taken out."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import dnslib
import pytest

from tests.gate.mitmdump import MITMDUMP, PORT, Mitmdump
from tests.gate.redirect import marked, redirected
from tests.lab import Lab, plan
from tests.lab.hellos import client_hello

DNS_PORT = 18053

pytestmark = pytest.mark.skipif(not MITMDUMP.exists(), reason="mitmdump isn't beside this Python")

OWN_PORT: tuple[str, ...] = ()
TRANSPARENT = ("--mode", "transparent")
both_modes = pytest.mark.parametrize("mode", [OWN_PORT, TRANSPARENT], ids=["own port", "transparent"])


POLICY = f"mode: custom\nallowed_domains: [allowed.test]\nallowed_cidrs: [{plan.CIDR}]\n"


@pytest.fixture
def start(lab: Lab, tmp_path: Path) -> Iterator[object]:
    started: list[Mitmdump] = []

    def start(mode: Sequence[str], *more: str, policy: str = POLICY) -> Mitmdump:
        options = [*mode, "--set", f"box_policy_name_servers={lab.nameserver}", *more]
        started.append(Mitmdump(tmp_path, policy, options))
        started[-1].wait_for("Proxy listening" if mode else "box-policy gate listening")
        return started[-1]

    with redirected(PORT, DNS_PORT):
        yield start
    for mitmdump in started:
        mitmdump.stop()


def exchange(address: str, port: int, data: bytes) -> bytes:
    """Send, and read to the end; empty after a reset."""
    with marked(socket.SOCK_STREAM, address) as sock:
        received = b""
        try:
            sock.connect((address, port))
            sock.sendall(data)
            while chunk := sock.recv(65536):
                received += chunk
        except ConnectionResetError:
            pass
        return received


def fetch_over_tls(lab: Lab, address: str, name: str) -> bytes:
    context = ssl.create_default_context(cafile=str(lab.ca_pem))
    with marked(socket.SOCK_STREAM, address) as sock:
        sock.connect((address, 443))
        with context.wrap_socket(sock, server_hostname=name) as tls:
            tls.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            return tls.recv(65536)


@both_modes
class TestEnforces:
    @pytest.mark.parametrize("address", [plan.ALLOWED4, plan.ALLOWED6, plan.EVIL4])
    def test_an_allowed_name(self, start, lab: Lab, mode: Sequence[str], address: str) -> None:  # type: ignore[no-untyped-def]
        start(mode)
        assert fetch_over_tls(lab, address, "allowed.test").startswith(b"HTTP/1.1 200")
        assert lab.packets(plan.EVIL4) == []

    @pytest.mark.parametrize("address", [plan.EVIL4, plan.EVIL6])
    def test_a_name_that_is_not_allowed(self, start, lab: Lab, mode: Sequence[str], address: str) -> None:  # type: ignore[no-untyped-def]
        start(mode)
        assert exchange(address, 443, client_hello(b"evil.test")) == bytes.fromhex("15030300020231")
        assert exchange(address, 22, b"SSH-2.0-x\r\n") == b""
        assert lab.packets() == []

    def test_plain_http(self, start, lab: Lab, mode: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
        mitmdump = start(mode)
        allowed = b"GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n"
        answer = exchange(plan.EVIL4, 80, allowed)
        assert answer.startswith(b"HTTP/1.1 200"), mitmdump.output
        assert exchange(plan.EVIL4, 80, allowed.replace(b"allowed", b"evil")).startswith(b"HTTP/1.1 403")
        assert lab.packets(plan.EVIL4) == []

    def test_a_server_that_speaks_first(self, start, lab: Lab, mode: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
        start(mode)
        with marked(socket.SOCK_STREAM, plan.CIDR4) as sock:
            sock.connect((plan.CIDR4, plan.BANNER_PORT))
            assert sock.recv(100).startswith(b"SSH-2.0-lab")

    def test_questions(self, start, lab: Lab, mode: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
        start(mode, "--set", f"box_policy_dns_port={DNS_PORT}").wait_for("answering DNS questions")
        for name, rcode in (("allowed.test", "NOERROR"), ("evil.test", "REFUSED")):
            with marked(socket.SOCK_DGRAM, plan.EVIL4) as sock:
                sock.sendto(dnslib.DNSRecord.question(name).pack(), (plan.EVIL4, 53))
                reply = dnslib.DNSRecord.parse(sock.recv(4096))
            assert dnslib.RCODE[reply.header.rcode] == rcode
        assert {question.name for question in lab.dns.questions} == {"allowed.test"}

    def test_no_more_than_the_operator_says(self, start, lab: Lab, mode: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
        start(mode, "--set", "box_policy_limits=pending=1", "--set", "box_policy_limits=linger=0.1")
        with marked(socket.SOCK_STREAM, plan.EVIL4) as held:
            held.connect((plan.EVIL4, 443))
            held.send(client_hello(b"evil.test")[:9])
            assert exchange(plan.ALLOWED4, 443, client_hello(b"allowed.test")) == b""
        assert lab.packets() == []

    def test_who_connects_to_the_port_itself(self, start, lab: Lab, mode: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
        start(mode)
        proxied = b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n"
        for data in (proxied, b"CONNECT evil.test:443 HTTP/1.1\r\n\r\n", client_hello(b"allowed.test")):
            with (
                contextlib.suppress(ConnectionResetError),
                socket.create_connection((plan.GATE4, PORT), timeout=15) as sock,
            ):
                sock.sendall(data)
                assert sock.recv(4096) == b""
        assert lab.packets() == []

    @pytest.mark.parametrize("spoil", ["syntax error", "deletion", "touch"])
    def test_the_addon_is_taken_out(self, start, lab: Lab, mode: Sequence[str], spoil: str) -> None:  # type: ignore[no-untyped-def]
        mitmdump = start(mode)
        stop = threading.Event()

        def knock() -> None:
            while not stop.is_set():
                try:
                    exchange(plan.EVIL4, 80, b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n")
                    exchange(plan.EVIL4, 9418, b"raw bytes\n")
                except OSError:
                    pass  # refused once the process has ended

        knocking = threading.Thread(target=knock)
        knocking.start()
        try:
            if spoil == "deletion":
                mitmdump.script.unlink()
            elif spoil == "touch":
                text = mitmdump.script.read_text()
                mitmdump.script.write_text(text + "\n")
            else:
                mitmdump.script.write_text("this is not Python\n")
            assert mitmdump.process.wait(timeout=20) == 1
        finally:
            stop.set()
            knocking.join()
        assert any("addon was removed" in line for line in mitmdump.output)
        assert lab.packets() == []


class TestRefusesToStart:
    @pytest.mark.parametrize(
        ("policy", "options", "says"),
        [
            (POLICY, ["--mode", "regular@18081", "--mode", "socks5"], "can't be enforced"),
            (POLICY, ["--mode", "upstream:http://x.test"], "use --mode transparent"),
            (POLICY, ["--mode", "reverse:http://x.test"], "use --mode transparent"),
            (None, [], "no policy to enforce"),
            (None, ["--set", "box_policy_file=/nonexistent.yaml"], "/nonexistent.yaml: No such file"),
            ("mode: custom\nallowed_domainz: []\n", [], "policy.yaml:2:1: allowed_domainz"),
            (POLICY, ["--set", "box_policy_private_ranges=10.0.0.1/8"], "10.0.0.0/8"),
            (POLICY, ["--set", "box_policy_log=/nonexistent/log"], "/nonexistent/log"),
            (POLICY, ["--set", "box_policy_limits=conections=5"], "box_policy_limits: there is no limit"),
            (POLICY, ["--set", "box_policy_dns_port=1", "--set", "listen_host=192.0.2.1"], "192.0.2.1"),
        ],
    )
    def test_with_one_line(
        self, require_lab: None, tmp_path: Path, policy: str | None, options: list[str], says: str
    ) -> None:
        mitmdump = Mitmdump(tmp_path, policy, options)
        assert mitmdump.process.wait(timeout=20) == 1
        mitmdump.stop()
        assert any(says in line for line in mitmdump.output), mitmdump.output
        assert not any("Traceback" in line for line in mitmdump.output)

    def test_on_a_busy_port(self, require_lab: None, tmp_path: Path) -> None:
        with socket.create_server(("0.0.0.0", PORT)):
            mitmdump = Mitmdump(tmp_path, POLICY, [])
            assert mitmdump.process.wait(timeout=20) == 1
            mitmdump.stop()
        assert any(f"{PORT}" in line and "in use" in line for line in mitmdump.output), mitmdump.output
