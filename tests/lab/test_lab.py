"""The lab sees every packet, and nothing leaves it."""

import asyncio
import socket
import threading

import dns.message
import dns.query
import pytest

from tests.lab import Lab, LabError, bpf, network, plan
from tests.lab.origin.packets import read_packet
from tests.lab.origin.recorder import Recorder


@pytest.fixture(params=[plan.ALLOWED4, plan.ALLOWED6], ids=["IPv4", "IPv6"])
def address(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def try_to_connect(address: str, port: int) -> socket.socket:
    """A socket whose SYN has been sent, whatever becomes of it."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setblocking(False)
    sock.connect_ex((address, port))
    return sock


def test_there_is_no_way_out_but_to_the_origin(lab: Lab) -> None:
    assert {name for _, name in socket.if_nameindex()} == {"lo", plan.GATE_INTERFACE}


@pytest.mark.parametrize(
    "target",
    [
        "1.1.1.1",
        plan.PRIVATE4,
        plan.METADATA4,
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "2001:db8::1",
        "64:ff9b::a9fe:a9fe",
        "fd00:ec2::254",
        "2606:4700::1",
    ],
)
def test_the_origin_owns_every_address(lab: Lab, target: str) -> None:
    with socket.create_connection((target, 80), 2):
        connection = lab.expect(lab.connections)[0]
    assert (connection.address, connection.port) == (target, 80)
    assert connection.peer[0] in {plan.GATE4, plan.GATE6}


@pytest.mark.parametrize("port", [80, plan.REFUSED_PORT, plan.SILENT_PORT])
def test_a_syn_is_seen_whatever_becomes_of_it(lab: Lab, address: str, port: int) -> None:
    with try_to_connect(address, port):
        (packet,) = [packet for packet in lab.packets(address, port) if packet.flags == "S"]
    assert packet.protocol == "tcp"
    assert packet.length == 0


def test_no_packet_is_missed_however_soon_one_looks(lab: Lab, address: str) -> None:
    for port in range(10_000, 10_200):
        try_to_connect(address, port).close()
        assert lab.packets(address, port, protocol="tcp") != []


def test_no_packet_of_other_threads_is_missed_either(lab: Lab) -> None:
    def knock(first: int) -> None:
        for port in range(first, first + 200):
            try_to_connect(plan.EVIL4, port).close()

    threads = [threading.Thread(target=knock, args=(first,)) for first in range(20_000, 28_000, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([packet for packet in lab.packets(plan.EVIL4) if packet.flags == "S"]) == 1600


def test_where_nothing_was_sent_nothing_is_seen(lab: Lab) -> None:
    with socket.create_connection((plan.ALLOWED4, 80)):
        pass
    assert lab.packets(plan.EVIL4) == []
    assert lab.packets(plan.ALLOWED4, 443) == []
    assert {packet.address for packet in lab.packets()} == {plan.ALLOWED4}


def test_payload_is_seen_up_to_256_bytes(lab: Lab, address: str) -> None:
    with socket.create_connection((address, plan.ECHO_PORT)) as sock:
        sock.sendall(b"x" * 1000)
        (packet,) = [packet for packet in lab.packets(address) if packet.length]
    assert (packet.length, packet.payload) == (1000, b"x" * 256)


def test_datagrams_are_seen(lab: Lab, address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"quic?", (address, 443))
    (packet,) = lab.packets(address, 443, protocol="udp")
    assert (packet.length, packet.payload, packet.flags) == (5, b"quic?", "")


@pytest.mark.parametrize("target", ["127.0.0.1", "::1", plan.GATE4, plan.GATE6, "0.0.0.0"])
def test_what_the_gate_sends_to_itself_is_seen_apart(lab: Lab, target: str) -> None:
    with try_to_connect(target, 8081):
        pass
    seen = "127.0.0.1" if target == "0.0.0.0" else target
    assert [packet.flags for packet in lab.loopback_packets(seen, 8081)] == ["S"]
    assert lab.packets() == []


def test_a_silent_port_and_a_silent_address_never_answer(lab: Lab, address: str) -> None:
    for target, port in ((address, plan.SILENT_PORT), (plan.SILENT4, 80), (plan.SILENT6, 80)):
        with pytest.raises(TimeoutError):
            socket.create_connection((target, port), 0.1)
        assert lab.packets(target, port) != []


def test_a_port_without_a_service_refuses(lab: Lab, address: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, plan.REFUSED_PORT), 2)


def test_the_recorder_looks_at_the_queue_when_it_is_asked(require_lab: None) -> None:
    with network.tap("lo", bpf.OUTGOING) as tap, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        recorder = Recorder(tap, lambda: None)
        for number in range(2000):
            sock.sendto(b"x", ("127.0.0.1", 10_000 + number))
        sent = [packet.port for packet in recorder.packets() if packet.protocol == "udp"]
    assert sent == list(range(10_000, 12_000))


def test_lost_packets_are_not_taken_for_none(require_lab: None) -> None:
    tap = network.tap("lo", bpf.OUTGOING)
    tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with tap, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        recorder = Recorder(tap, lambda: None)
        for _ in range(100):
            sock.sendto(b"x", ("127.0.0.1", 9))
        with pytest.raises(RuntimeError, match="lost"):
            recorder.packets()
        recorder.clear()
        assert recorder.packets() == []


@pytest.mark.parametrize("data", [b"", b"\x45", b"\x60" * 39, b"\x45" + bytes(19), b"\x60" + bytes(39)])
def test_a_stump_of_a_packet_is_no_error(data: bytes) -> None:
    packet = read_packet(data)
    assert packet is None or packet.port == 0


def test_ipv6_extension_headers_are_walked(lab: Lab) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        options = b"\0\0\x01\x04\0\0\0\0"
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, options)
        sock.sendto(b"hidden?", (plan.EVIL6, 4444))
    (packet,) = lab.packets(plan.EVIL6, 4444)
    assert (packet.protocol, packet.length, packet.payload) == ("udp", 7, b"hidden?")


def test_reset_forgets_cuts_and_restores(lab: Lab) -> None:
    lab.dns.set("allowed.test", rcode="SERVFAIL")
    with socket.create_connection((plan.ALLOWED4, plan.ECHO_PORT), 2) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        lab.reset()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    assert lab.packets() == []
    assert lab.connections() == []
    assert resolves(lab, "allowed.test")


def resolves(lab: Lab, name: str) -> bool:
    return bool(dns.query.udp(dns.message.make_query(name, "A"), lab.nameserver, 2).answer)


def test_expect_returns_what_it_waited_for(lab: Lab) -> None:
    late = threading.Timer(0.05, lambda: try_to_connect(plan.ALLOWED4, 80).close())
    late.start()
    (packet,) = lab.expect(lambda: [packet for packet in lab.packets(port=80) if packet.flags == "S"])
    late.join()
    assert packet.address == plan.ALLOWED4


def test_expect_gives_up(lab: Lab) -> None:
    with pytest.raises(AssertionError, match=r"within 0\.02 s"):
        lab.expect(lambda: lab.packets(plan.EVIL4), timeout=0.02)


async def test_expect_async_lets_the_loop_run(lab: Lab) -> None:
    async def talk() -> None:
        reader, writer = await asyncio.open_connection(plan.ALLOWED4, plan.ECHO_PORT)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()

    task = asyncio.create_task(talk())
    (connection,) = await lab.expect_async(
        lambda: [connection for connection in lab.connections() if connection.closed]
    )
    await task
    assert (connection.received, connection.closed) == (b"hello", "eof")


async def test_expect_async_gives_up(lab: Lab) -> None:
    with pytest.raises(AssertionError):
        await lab.expect_async(lambda: lab.packets(plan.EVIL4), timeout=0.02)


def test_a_wrong_command_is_refused_and_harms_nothing(lab: Lab) -> None:
    with pytest.raises(LabError, match="nonsense"):
        lab.dns.set("bad.test", A=["nonsense"])
    assert not resolves(lab, "bad.test")
