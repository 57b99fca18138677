"""A box's network: nothing but the way to the gate's listeners."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces import launcher as launcher_module
from box_policy.sandbox.namespaces.served_box import ServedBox
from tests.sandbox.boxes import PATIENCE, Outcome, new_box, parse_sockaddr_in, python, shell

pytestmark = pytest.mark.asyncio(loop_scope="module")

SO_ORIGINAL_DST = 80
IP6T_SO_ORIGINAL_DST = 80

SEND_AND_PRINT = """
import socket, sys
kind, address, port = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, getattr(socket, kind)) as sock:
    sock.settimeout(15)
    sock.connect((address, int(port)))
    sock.sendall(b"question")
    print(sock.recv(100).decode())
"""

CONNECT_AND_PRINT_ERROR = """
import errno, socket, sys
kind, address, port = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with socket.socket(family, getattr(socket, kind)) as sock:
    sock.settimeout(15)
    try:
        sock.connect((address, int(port)))
        sock.send(b"x")
        sock.send(b"x")
        sock.recv(1)
    except TimeoutError:
        print("timeout")
    except OSError as error:
        print(errno.errorcode[error.errno])
    else:
        print("sent")
"""


def listener(sockets: tuple[socket.socket, ...], address: str) -> socket.socket:
    """That of the address's family; the test is skipped on a machine without IPv6."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for sock in sockets:
        if sock.family == family:
            return sock
    pytest.skip("IPv6 is switched off on this machine")


def original_destination(sock: socket.socket) -> tuple[str, int]:
    if sock.family == socket.AF_INET:
        return parse_sockaddr_in(sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
    data = sock.getsockopt(socket.IPPROTO_IPV6, IP6T_SO_ORIGINAL_DST, 28)
    port, address = struct.unpack_from("!2xH4x16s", data)
    return socket.inet_ntop(socket.AF_INET6, address), port


@asynccontextmanager
async def talking(box: ServedBox, source: str, *arguments: str) -> AsyncIterator[asyncio.Task[Outcome]]:
    task = asyncio.create_task(python(box, source, *arguments))
    async with asyncio.timeout(PATIENCE):
        yield task
        await task


async def test_there_is_only_lo(box: ServedBox) -> None:
    interfaces = await python(box, "import socket; print(socket.if_nameindex())")
    assert interfaces.output == "[(1, 'lo')]\n"


async def test_lo_has_addresses_that_are_not_loopback(box: ServedBox) -> None:
    # Otherwise getaddrinfo() with AI_ADDRCONFIG, as most programs call it, finds nothing.
    bind = """
import socket
for family, address in ((socket.AF_INET, "10.0.2.15"), (socket.AF_INET6, "fd00:2::15")):
    with socket.socket(family) as sock:
        sock.bind((address, 0))
        print(address)
"""
    expected = "10.0.2.15\nfd00:2::15\n" if len(box.listeners.tcp) == 2 else "10.0.2.15\n"
    assert (await python(box, bind)).output.startswith(expected)


async def test_every_route_leads_to_lo(box: ServedBox) -> None:
    routes = (await shell(box, "tail -n +2 /proc/net/route; cat /proc/net/ipv6_route")).output
    assert routes
    assert {line.split()[0] if "\t" in line else line.split()[-1] for line in routes.splitlines()} == {"lo"}


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
async def test_tcp_to_anywhere_arrives_with_its_destination(box: ServedBox, address: str) -> None:
    sock = listener(box.listeners.tcp, address)
    loop = asyncio.get_running_loop()
    async with talking(box, SEND_AND_PRINT, "SOCK_STREAM", address, "443") as program:
        accepted, _ = await loop.sock_accept(sock)
        with accepted:
            accepted.setblocking(False)
            assert original_destination(accepted) == (address, 443)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert await loop.sock_recv(accepted, 100) == b"question"
            await loop.sock_sendall(accepted, b"answer")
        assert (await program).output == "answer\n"


@pytest.mark.parametrize("address", ["8.8.8.8", "127.0.0.53", "10.0.2.3", "2001:db8::53", "::1"])
async def test_dns_over_udp_arrives_and_its_answer_is_believed(box: ServedBox, address: str) -> None:
    # The program's socket is connected: the kernel drops an answer from any other address.
    sock = listener(box.listeners.dns_udp, address)
    loop = asyncio.get_running_loop()
    async with talking(box, SEND_AND_PRINT, "SOCK_DGRAM", address, "53") as program:
        question, client = await loop.sock_recvfrom(sock, 100)
        assert question == b"question"
        await loop.sock_sendto(sock, b"answer", client)
        assert (await program).output == "answer\n"


@pytest.mark.parametrize("address", ["8.8.8.8", "127.0.0.53", "2001:db8::53"])
async def test_dns_over_tcp_arrives_at_the_dns_listener(box: ServedBox, address: str) -> None:
    sock = listener(box.listeners.dns_tcp, address)
    loop = asyncio.get_running_loop()
    async with talking(box, SEND_AND_PRINT, "SOCK_STREAM", address, "53") as program:
        accepted, _ = await loop.sock_accept(sock)
        with accepted:
            accepted.setblocking(False)
            assert original_destination(accepted) == (address, 53)
            await loop.sock_sendall(accepted, b"answer")
        assert (await program).output == "answer\n"


@pytest.mark.parametrize(
    "address", ["192.0.2.7", "2001:db8::7", "224.0.0.251", "10.0.2.2", "169.254.169.254"]
)
async def test_other_udp_is_refused_at_once(box: ServedBox, address: str) -> None:
    listener(box.listeners.dns_udp, address)
    outcome = await python(box, CONNECT_AND_PRINT_ERROR, "SOCK_DGRAM", address, "443")
    assert outcome.output.strip() in {"EPERM", "EHOSTUNREACH", "EACCES", "ECONNREFUSED"}


async def test_the_resolver_asks_the_gate(box: ServedBox) -> None:
    loop = asyncio.get_running_loop()
    lookup = "import socket; socket.getaddrinfo('name.test', 443)"
    task = asyncio.create_task(python(box, lookup))
    async with asyncio.timeout(PATIENCE):
        question, client = await loop.sock_recvfrom(listener(box.listeners.dns_udp, "8.8.8.8"), 512)
        assert b"\x04name\x04test\x00" in question
        refused = question[:2] + b"\x81\x85" + question[4:]
        await loop.sock_sendto(listener(box.listeners.dns_udp, "8.8.8.8"), refused, client)
        task.cancel()


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.2.15", "0.0.0.0", "::1"])
async def test_a_server_in_the_box_is_reached_in_the_box(box: ServedBox, address: str) -> None:
    listener(box.listeners.tcp, address)
    serve = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family) as server:
    server.bind((sys.argv[1], 80))
    server.listen()
    with socket.socket(family) as client:
        client.connect((sys.argv[1], 80))
        accepted, _ = server.accept()
        accepted.sendall(b"local")
        print(client.recv(100).decode())
"""
    assert (await python(box, serve, address)).output == "local\n"


@pytest.mark.parametrize(("name", "value"), [("tcp_timestamps", "2"), ("ip_unprivileged_port_start", "0")])
async def test_kernel_settings_of_the_namespace(box: ServedBox, name: str, value: str) -> None:
    assert (await shell(box, f"cat /proc/sys/net/ipv4/{name}")).output == f"{value}\n"


async def test_the_listeners_are_ready_for_an_event_loop(box: ServedBox) -> None:
    everything = (*box.listeners.tcp, *box.listeners.dns_udp, *box.listeners.dns_tcp)
    assert [sock.getblocking() for sock in everything] == [False] * len(everything)
    assert [sock.get_inheritable() for sock in everything] == [False] * len(everything)
    assert {sock.getsockname()[0] for sock in everything} <= {"127.0.0.1", "::1"}


async def test_the_namespace_is_not_the_hosts(box: ServedBox) -> None:
    inside = (await shell(box, "readlink /proc/self/ns/net")).output.strip()
    assert inside != str(Path("/proc/self/ns/net").readlink())


async def test_the_hosts_loopback_is_not_the_boxs(box: ServedBox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = await python(box, CONNECT_AND_PRINT_ERROR, "SOCK_STREAM", "127.0.0.1", str(port))
    assert outcome.output == "ECONNREFUSED\n"


async def test_a_hosts_abstract_socket_is_not_the_boxs(box: ServedBox) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0box-policy-test")
        server.listen()
        connect = """
import socket
with socket.socket(socket.AF_UNIX) as sock:
    print(sock.connect_ex("\\0box-policy-test"))
"""
        assert (await python(box, connect)).output == "111\n"


async def test_a_machine_without_ipv6(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if user != "caller":
        pytest.skip("the same for every user")
    without = """
import sys; sys.path.append(sys.argv[1])
from box_policy.sandbox.namespaces import network, zygote
network._has_ipv6 = lambda: False
zygote.main()
"""
    monkeypatch.setattr(launcher_module, "_ZYGOTE_CODE", without)
    launcher = NamespaceLauncher()
    try:
        async with new_box(launcher) as box:
            families = {sock.family for sock in (*box.listeners.tcp, *box.listeners.dns_udp)}
            assert families == {socket.AF_INET}
            assert len(box.listeners.dns_tcp) == 1
            outcome = await python(box, CONNECT_AND_PRINT_ERROR, "SOCK_STREAM", "2001:db8::7", "443")
            assert outcome.output == "ENETUNREACH\n"
    finally:
        await launcher.close()


async def test_closed_listeners_leave_no_way_out(box: ServedBox) -> None:
    # Last in this file: the shared box has no listeners from here on.
    box.listeners.close()
    for kind, address in (("SOCK_STREAM", "192.0.2.7"), ("SOCK_DGRAM", "192.0.2.7")):
        outcome = await python(box, CONNECT_AND_PRINT_ERROR, kind, address, "443")
        assert outcome.output.strip() in {"ECONNREFUSED", "EPERM", "EHOSTUNREACH", "EACCES"}
