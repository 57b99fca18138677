"""A gate beside an application, in one network namespace: what gets out, proved at the origins."""

import json
import os
import socket
from collections.abc import Iterator

import dns.rcode
import pytest

from box_policy.sandbox.sidecar.rules import GATE_MARK
from tests.lab import Lab, plan
from tests.sandbox.sidecars import (
    PATIENCE,
    POLICY,
    Sidecar,
    answers,
    asked,
    connected,
    handshake,
    http_status,
    is_reset,
    no_rules_afterwards,
)

IPV6_FREEBIND = 78
"""linux/in6.h"""
ELSEWHERE = "198.51.100.9"
"""Said to be a name server: nothing is there."""


@pytest.fixture(scope="module")
def sidecar(running_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One for the tests that leave it as it is."""
    directory = tmp_path_factory.mktemp("sidecar")
    (directory / "policy.yaml").write_text(json.dumps(POLICY))
    with no_rules_afterwards():
        gate = Sidecar(directory)
        try:
            gate.wait_for("ready")
            yield gate
        finally:
            gate.end()


class TestTraffic:
    @pytest.mark.parametrize("address", [plan.ALLOWED4, plan.ALLOWED6])
    def test_tls_by_name(self, sidecar: Sidecar, lab: Lab, address: str) -> None:
        assert handshake(lab, address, "allowed.test").startswith("TLS")
        assert lab.connections(address, 443)

    @pytest.mark.parametrize("address", [plan.EVIL4, plan.EVIL6])
    def test_tls_that_is_denied(self, sidecar: Sidecar, lab: Lab, address: str) -> None:
        with pytest.raises(OSError, match=r"(?i)access.denied"):
            handshake(lab, address, "evil.test")
        assert lab.packets(address) == []

    def test_http(self, sidecar: Sidecar, lab: Lab) -> None:
        assert (http_status(plan.ALLOWED4, "allowed.test"), http_status(plan.EVIL4, "evil.test")) == (
            200,
            403,
        )
        assert lab.packets(plan.EVIL4) == []

    def test_raw_tcp(self, sidecar: Sidecar, lab: Lab) -> None:
        assert is_reset(plan.EVIL4, plan.ECHO_PORT) and is_reset(plan.EVIL6, plan.ECHO_PORT)
        assert lab.packets(plan.EVIL4) == lab.packets(plan.EVIL6) == []
        with connected(plan.CIDR4, plan.ECHO_PORT) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"

    @pytest.mark.parametrize("server", [ELSEWHERE, "127.0.0.11", "127.0.0.1", plan.GATE4, "2001:db8::53"])
    @pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
    def test_questions_to_whomever(self, sidecar: Sidecar, lab: Lab, server: str, tcp: bool) -> None:
        assert answers(asked(server, "allowed.test", tcp=tcp)) == [plan.ALLOWED4]
        assert asked(server, "evil.test", tcp=tcp).rcode() == dns.rcode.REFUSED
        assert all(question.name == "allowed.test" for question in lab.dns.questions)

    @pytest.mark.parametrize(
        "address", [plan.CIDR4, plan.ALLOWED4, plan.EVIL6, "224.0.0.251", "255.255.255.255"]
    )
    def test_datagrams_are_refused_at_once(self, sidecar: Sidecar, lab: Lab, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            with pytest.raises(PermissionError):
                sock.sendto(b"x", (address, 443))
        assert lab.packets(address) == []

    def test_its_own_addresses_are_the_applications_affair(self, sidecar: Sidecar, lab: Lab) -> None:
        for address in ("127.0.0.1", plan.GATE4):
            with socket.create_server((address, 0)) as server, connected(*server.getsockname()) as client:
                accepted, _ = server.accept()
                with accepted:
                    accepted.sendall(b"x")
                    assert client.recv(1) == b"x"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind((plan.GATE4, 0))
            receiver.sendto(b"x", receiver.getsockname())
            assert receiver.recv(1) == b"x"

    def test_the_gates_own_listener_is_no_destination(self, sidecar: Sidecar, lab: Lab) -> None:
        assert is_reset("127.0.0.1", 61001)

    def test_a_name_for_an_own_address(self, sidecar: Sidecar, lab: Lab) -> None:
        lab.dns.set("x.wild.test", A=[plan.GATE4])
        with pytest.raises(OSError, match=r"(?i)access.denied"):
            handshake(lab, plan.WILDCARD4, "x.wild.test")
        assert lab.loopback_packets(plan.GATE4) == []

    def test_a_socket_that_is_bound_to_an_interface(self, sidecar: Sidecar, lab: Lab) -> None:
        """It's redirected to an address of lo, and would be sent there by way of the interface."""

        def bind(sock: socket.socket) -> None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, plan.GATE_INTERFACE.encode())
            sock.settimeout(0.3)

        with pytest.raises(OSError):
            connected(plan.EVIL4, 443, bind)
        assert lab.packets() == []

    def test_dockers_resolver_behind_its_rules(self, sidecar: Sidecar, lab: Lab) -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver,
            socket.create_server(("127.0.0.11", 0)) as listener,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            resolver.bind(("127.0.0.11", 0))
            with pytest.raises(PermissionError):
                client.sendto(b"x", resolver.getsockname())
            with pytest.raises(ConnectionRefusedError):
                connected(*listener.getsockname())

    def test_nobody_speaks_in_the_name_of_a_name_server(self, sidecar: Sidecar, lab: Lab) -> None:
        """Anybody may bind an IPv6 address that isn't there, and the gate's source ports can be seen."""
        with (
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as gate,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as forger,
        ):
            gate.bind((plan.GATE6, 0))
            forger.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
            forger.bind((plan.NAMESERVER6, 0))
            with pytest.raises(PermissionError):
                forger.sendto(b"x", gate.getsockname())

    def test_groups_and_sources_are_not_told(self, sidecar: Sidecar, lab: Lab) -> None:
        """The kernel reports them to the neighbours, and whoever joins makes them up. Here without it."""
        interface = socket.if_nametoindex(plan.GATE_INTERFACE)
        with (
            socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as member,
            pytest.raises(PermissionError),
        ):
            member.sendto(bytes([143, *bytes(7)]), ("ff02::16", 0, 0, interface))

    def test_other_protocols(self, sidecar: Sidecar, lab: Lab) -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as ping,
            pytest.raises(PermissionError),
        ):
            ping.sendto(bytes(8), (plan.EVIL4, 0))
        assert lab.packets(plan.EVIL4) == []


class TestWhoseTrafficItIs:
    def test_the_gates_user_without_the_mark(self, sidecar: Sidecar, lab: Lab) -> None:
        # Which is what every other test here does: the application has the gate's user.
        assert is_reset(plan.EVIL4, plan.ECHO_PORT)
        assert lab.packets(plan.EVIL4) == []

    def test_the_mark_of_another_user(self, sidecar: Sidecar, lab: Lab) -> None:
        if os.geteuid() != 0:
            pytest.skip("takes a second user")

        with connected(plan.EVIL4, plan.ECHO_PORT, _mark):  # with both, it is the gate
            pass
        lab.reset()
        child = os.fork()
        if child == 0:
            try:
                sock = socket.socket()
                _mark(sock)
                sock.close()
                os.setresuid(4711, 4711, 0)
                sock = socket.socket()
                os.seteuid(0)
                _mark(sock)
                sock.settimeout(PATIENCE)
                sock.connect((plan.EVIL4, plan.ECHO_PORT))
                sock.sendall(b"hello\r\n")
                sock.recv(10)
            except ConnectionResetError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert lab.packets(plan.EVIL4) == []


def _mark(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, GATE_MARK)
