"""What an attack inside the box says to the kernel: system calls by number, netlink messages by hand.

Put in front of an attack's own code by ``tests.adversary.kernel_attacks``: like ``agent.py`` it needs
nothing but the standard library, and runs on Python 3.8.
"""

import ctypes
import errno
import platform
import socket
import struct
from typing import Any, Callable, List, Union

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
X86 = platform.machine() == "x86_64"

# Name: x86_64, aarch64. From 403 on the numbers are the same.
NUMBERS = {
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clone": (56, 220),
    "clone3": (435, 435),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "init_module": (175, 105),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "setns": (308, 268),
    "socket": (41, 198),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
NEW_NET, NEW_USER = 0x40000000, 0x10000000

ROUTE, SOCK_DIAG, NETFILTER = 0, 4, 12
_ACK, _CREATE, _DUMP = 5, 0x405, 0x301  # NLM_F_REQUEST with NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP
_LO = 1


def call(name: str, *arguments: object) -> int:
    """A system call. OSError if it fails."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = LIBC.syscall(ctypes.c_long(NUMBERS[name][0 if X86 else 1]), *converted)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return int(result)


def attempt(act: Callable[..., object], *arguments: Any) -> str:
    """What an act comes to: ``done``, or its error's name."""
    try:
        act(*arguments)
    except OSError as error:
        if isinstance(error, socket.timeout) and not error.errno:
            return "timeout"
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


# Netlink


def attribute(kind: int, data: Union[str, bytes]) -> bytes:
    """A struct nlattr with its value, padded."""
    if isinstance(data, str):
        data = data.encode() + b"\0"
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | 0x8000, b"".join(attributes))


def message(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload


def talk(protocol: int, *messages: bytes) -> None:
    """Send messages in one datagram. OSError with the first error of the kernel's."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as sock:
        sock.settimeout(2)
        sock.bind((0, 0))
        sock.send(b"".join(messages))
        waiting = sum(struct.unpack_from("=H", m, 6)[0] & 4 > 0 for m in messages)
        while waiting:
            data, offset = sock.recv(1 << 17), 0
            while offset + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, offset)
                if kind == 2:  # NLMSG_ERROR
                    (code,) = struct.unpack_from("=i", data, offset + 16)
                    if code:
                        raise OSError(-code, "netlink")
                    waiting -= 1
                offset += (length + 3) & ~3


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def add_link(name: str, kind: str, *data: bytes) -> int:
    """A network interface: veth, macvlan on lo, bridge, dummy, ..., and up with it."""
    info = nested(18, attribute(1, kind), *([nested(2, *data)] if data else []))
    link = attribute(5, struct.pack("=I", _LO)) if kind == "macvlan" else b""
    talk(
        ROUTE,
        message(
            16, _CREATE | 0x200, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, name) + link + info
        ),
    )
    index = socket.if_nametoindex(name)
    talk(ROUTE, message(16, _ACK, struct.pack("=BxHiII", 0, 0, index, 1, 1)))
    return index


def add_address(address: str, index: int = _LO) -> None:
    family, size = (10, 128) if ":" in address else (2, 32)
    head = struct.pack("=BBBBI", family, size, 0, 0, index)
    talk(ROUTE, message(20, _CREATE, head + attribute(1, packed(address)) + attribute(2, packed(address))))


def add_default_route(index: int, family: int = 2) -> None:
    head = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 254, 4, 253, 1, 0)
    talk(ROUTE, message(24, _CREATE | 0x100, head + attribute(4, struct.pack("=I", index))))


def destroy_sockets(family: int, protocol: int, states: int) -> List[str]:
    """SOCK_DESTROY for every socket of a kind, as ``ss -K`` does. Returns what became of each."""
    request = struct.pack("=BBBBI48s", family, protocol, 0, 0, states, bytes(48))
    found = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, SOCK_DIAG) as sock:
        sock.settimeout(2)
        sock.send(message(20, _DUMP, request))
        done = False
        while not done:
            data, offset = sock.recv(1 << 17), 0
            while offset + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, offset)
                if kind == 20:
                    found.append(data[offset + 20 : offset + 68])
                done = done or kind in (2, 3)
                offset += (length + 3) & ~3
    ends = []
    for identity in found:
        request = struct.pack("=BBBBI48s", family, protocol, 0, 0, states, identity)
        ends.append(attempt(talk, SOCK_DIAG, message(21, _ACK, request)))
    return ends


# nf_tables: families of tables, and the expressions of a rule

_INET = 1


def batch(*messages: bytes) -> None:
    mark = struct.pack("=BBH", 0, 0, socket.htons(10))
    talk(NETFILTER, message(16, 1, mark), *messages, message(17, 1, mark))


def nft(kind: int, flags: int, *attributes: bytes) -> bytes:
    return message(0xA00 | kind, flags, struct.pack("=BBH", _INET, 0, 0) + b"".join(attributes))


def flush_rules() -> None:
    """What ``nft flush ruleset`` sends."""
    batch(message(0xA02, _ACK, bytes(4)))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, attribute(1, name), nested(2, *attributes))


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def _value(kind: int, data: bytes) -> bytes:
    return nested(kind, attribute(1, data))


def redirect_rules(port: int, *, protocol: int = 6, to: int = 61001) -> None:
    """A table of its own: what goes to a port, wherever that is, arrives at another on this host."""
    table, chain = attribute(1, "own"), attribute(3, "own")
    hook = nested(
        4, _number(1, 3), struct.pack("=HHi", 8, 2, struct.unpack("=i", struct.pack("!i", -150))[0])
    )
    expressions = nested(
        4,
        _expression("meta", _number(2, 16), _number(1, 1)),
        _expression("cmp", _number(1, 1), _number(2, 0), _value(3, bytes([protocol]))),
        _expression("payload", _number(1, 1), _number(2, 2), _number(3, 2), _number(4, 2)),
        _expression("cmp", _number(1, 1), _number(2, 0), _value(3, struct.pack("!H", port))),
        _expression("immediate", _number(1, 1), _value(2, struct.pack("!H", to))),
        _expression("redir", _number(1, 1)),
    )
    batch(
        nft(0, _CREATE, attribute(1, "own")),
        nft(3, _CREATE, table, chain, hook, _number(5, 1), attribute(7, "nat")),
        nft(6, _CREATE | 0x800, table, attribute(2, "own"), expressions),
    )


def drop_rules(*names: str) -> None:
    batch(*(nft(2, _ACK, attribute(1, name)) for name in names))


# Packets by hand


def checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(payload),
        1,
        0,
        64,
        protocol,
        0,
        packed(source),
        packed(destination),
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def tcp_syn(source: str, destination: str, port: int, payload: bytes = b"") -> bytes:
    segment = struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 0x50, 2, 65535, 0, 0) + payload
    pseudo = packed(source) + packed(destination) + struct.pack("!BBH", 0, 6, len(segment))
    return ipv4(
        source, destination, 6, segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]
    )


def udp(source: str, destination: str, port: int, payload: bytes) -> bytes:
    return ipv4(source, destination, 17, struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload)
