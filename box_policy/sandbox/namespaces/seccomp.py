"""The system call filters of a box: of its pid 1, and of every program in it.

Namespaces contain a program; a filter shuts what they do not contain (AF_VSOCK reaches the
hypervisor from any network namespace, io_uring opens sockets past a socket filter), what would add
kernel attack surface (nested user namespaces, bpf, keyrings, protocols whose modules the kernel would
load for the asking), and what would outlive the box (set-uid files in a host directory).

A filter is a list of ``Rule``; ``assemble`` turns it into classic BPF, seccomp(2). Rules for one
system call are tried in order; the first whose conditions all hold decides. No rule: allowed.
"""

import errno
import os
import platform
import resource
import socket
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass

# linux/bpf_common.h: class | size or operation | mode or source.
BPF_LOAD_WORD = 0x20
BPF_JUMP_IF_EQUAL = 0x15
BPF_JUMP_IF_GREATER_OR_EQUAL = 0x35
BPF_JUMP_IF_ANY_BIT = 0x45
BPF_AND = 0x54
BPF_RETURN = 0x06

# struct seccomp_data
NUMBER_OFFSET = 0
ARCHITECTURE_OFFSET = 4
ARGUMENTS_OFFSET = 16

RETURN_ALLOW = 0x7FFF0000
RETURN_ERRNO = 0x00050000
RETURN_KILL_PROCESS = 0x80000000

AS_IF_DONE = -1
"""In place of an errno: the call does nothing, and returns 0."""

_X32_BIT = 0x40000000
CLONE_NEWUSER = 0x10000000
_NEW_NAMESPACES = 0x7E020080
"""CLONE_NEWUSER and those of all other kinds, sched.h."""
_FIRST_PROCESS = 1
_EXIT_SIGNAL = 0xFF
"""Of clone(2)'s flags. CLONE_NEWTIME, which lies there, is none of them."""
TIOCSTI = 0x5412
TIOCLINUX = 0x541C
_TIOCSETD = 0x5423
AF_NETLINK = 16  # by its number: this module is read on other systems, too, to say that there are no boxes
_SET_ID_BITS = stat.S_ISUID | stat.S_ISGID
_O_CREATES = os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)


@dataclass(frozen=True, slots=True)
class Condition:
    """Holds if 32 bits of an argument, under ``mask``, are ``value`` (or, if None, are not zero)."""

    argument: int
    mask: int = 0xFFFFFFFF
    value: int | None = None
    high: bool = False
    """The high half of the argument, not the low one."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a system call returns if all its conditions hold: an errno, 0 for "go ahead", AS_IF_DONE."""

    call: str
    error: int
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs between machines."""

    audit: int
    """AUDIT_ARCH_*, linux/audit.h: the calling convention that a system call was made with."""
    has_x32: bool
    numbers: dict[str, int]


# From 403 on, numbers are the same on every architecture (kernel: scripts/syscall.tbl).
_COMMON_NUMBERS = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "clone3": 435,
    "openat2": 437,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "fchmodat2": 452,
    "open_tree_attr": 467,
}
X86_64 = Architecture(
    audit=0xC000003E,
    has_x32=True,
    numbers=_COMMON_NUMBERS
    | {
        "open": 2,
        "ioctl": 16,
        "socket": 41,
        "socketpair": 53,
        "clone": 56,
        "mkdir": 83,
        "creat": 85,
        "chmod": 90,
        "fchmod": 91,
        "mknod": 133,
        "pivot_root": 155,
        "acct": 163,
        "mount": 165,
        "umount2": 166,
        "swapon": 167,
        "swapoff": 168,
        "reboot": 169,
        "syslog": 103,
        "init_module": 175,
        "delete_module": 176,
        "setrlimit": 160,
        "quotactl": 179,
        "kexec_load": 246,
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "openat": 257,
        "mkdirat": 258,
        "mknodat": 259,
        "fchmodat": 268,
        "unshare": 272,
        "perf_event_open": 298,
        "fanotify_init": 300,
        "prlimit64": 302,
        "name_to_handle_at": 303,
        "open_by_handle_at": 304,
        "setns": 308,
        "finit_module": 313,
        "kexec_file_load": 320,
        "bpf": 321,
        "userfaultfd": 323,
    },
)
AARCH64 = Architecture(
    audit=0xC00000B7,
    has_x32=False,
    numbers=_COMMON_NUMBERS
    | {
        "ioctl": 29,
        "mknodat": 33,
        "mkdirat": 34,
        "umount2": 39,
        "mount": 40,
        "pivot_root": 41,
        "fchmod": 52,
        "fchmodat": 53,
        "openat": 56,
        "quotactl": 60,
        "acct": 89,
        "unshare": 97,
        "kexec_load": 104,
        "init_module": 105,
        "delete_module": 106,
        "syslog": 116,
        "reboot": 142,
        "setrlimit": 164,
        "socket": 198,
        "socketpair": 199,
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "clone": 220,
        "swapon": 224,
        "swapoff": 225,
        "perf_event_open": 241,
        "prlimit64": 261,
        "fanotify_init": 262,
        "name_to_handle_at": 264,
        "open_by_handle_at": 265,
        "setns": 268,
        "finit_module": 273,
        "bpf": 280,
        "userfaultfd": 282,
        "kexec_file_load": 294,
    },
)
_ARCHITECTURES = {"x86_64": X86_64, "aarch64": AARCH64}

# Not SCTP, DCCP, L2TP, ...: for the first socket of theirs, or of a kind that no protocol has, the kernel
# looks for a module, as the host's root. 262 is MPTCP; of netlink these two are routes and interfaces, which
# libraries look at, and the list of sockets that ss(8) shows. nf_tables, IPsec and audit are not among them.
_TCP_UDP_PING = (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6, 262)
PROTOCOLS = {socket.AF_INET: _TCP_UDP_PING, socket.AF_INET6: _TCP_UDP_PING, AF_NETLINK: (0, 4)}
_KIND = 0xF
"""Of socket(2)'s second argument, what isn't a flag."""
INTERNET_KINDS_NOT = (
    (errno.EPERM, Condition(1, _KIND, socket.SOCK_RAW)),
    (errno.ESOCKTNOSUPPORT, Condition(1, _KIND, 0)),
    (errno.ESOCKTNOSUPPORT, Condition(1, 0xC)),  # all but SOCK_STREAM, 1, and SOCK_DGRAM, 2
)
_NOT_PERMITTED = [
    "acct",
    "add_key",
    "bpf",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "name_to_handle_at",
    "open_by_handle_at",
    "open_tree",
    "open_tree_attr",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "userfaultfd",
]


def _never_set_id(call: str, mode: int, *further: Condition) -> Rule:
    return Rule(call, errno.EPERM, (Condition(mode, mask=_SET_ID_BITS), *further))


def _sockets() -> list[Rule]:
    """Only what a network namespace holds, and of that only what programs use."""
    rules = [Rule("socket", 0, (Condition(0, value=socket.AF_UNIX),))]
    for family, protocols in PROTOCOLS.items():
        own = Condition(0, value=family)
        if family != AF_NETLINK:
            rules += [Rule("socket", error, (own, kind)) for error, kind in INTERNET_KINDS_NOT]
        rules += [Rule("socket", 0, (own, Condition(2, value=protocol))) for protocol in protocols]
        rules.append(Rule("socket", errno.EPROTONOSUPPORT, (own,)))
    return [
        *rules,
        Rule("socket", errno.EAFNOSUPPORT),
        Rule("socketpair", 0, (Condition(0, value=socket.AF_UNIX),)),
        Rule("socketpair", errno.EAFNOSUPPORT),
    ]


def init_rules() -> list[Rule]:
    """The filter of pid 1 once it has made the box: what it needs no more, nobody is to have who takes it.

    It has all capabilities over the box's namespaces, and leads its children into U2, by setns(2).
    """
    return [
        *(Rule(call, errno.EPERM) for call in _NOT_PERMITTED),
        *_sockets(),
        # ENOSYS, where programs have a fall-back for older kernels; its arguments lie in memory, which
        # a filter cannot read.
        *(Rule(call, errno.ENOSYS) for call in ("io_uring_setup", "io_uring_enter", "io_uring_register")),
        Rule("clone3", errno.ENOSYS),
        Rule("clone", errno.EPERM, (Condition(0, mask=_NEW_NAMESPACES & ~_EXIT_SIGNAL),)),
        Rule("unshare", errno.EPERM, (Condition(0, mask=_NEW_NAMESPACES),)),
    ]


def box_rules() -> list[Rule]:
    """The filter of a box's programs."""
    return [
        *init_rules(),
        Rule("setns", errno.EPERM),
        Rule("openat2", errno.ENOSYS),  # its mode lies in memory, too
        # Both put bytes into a terminal's input as if typed: on the host, if the terminal is the host's.
        Rule("ioctl", errno.EPERM, (Condition(1, value=TIOCSTI),)),
        Rule("ioctl", errno.EPERM, (Condition(1, value=TIOCLINUX),)),
        # A line discipline is a module of the kernel's, loaded for whoever asks.
        Rule("ioctl", errno.EPERM, (Condition(1, value=_TIOCSETD),)),
        # RLIMIT_CORE stays what it was set to, see workload.limit_cores. Said to be done: programs that hold
        # secrets set it to 0, and end if they can't.
        Rule("setrlimit", AS_IF_DONE, (Condition(0, value=resource.RLIMIT_CORE),)),
        # Where a box has one user id, its pid 1 has that too, and would let its limits be changed.
        Rule("prlimit64", errno.EPERM, (Condition(0, value=_FIRST_PROCESS),)),
        Rule("prlimit64", 0, (Condition(2, value=0), Condition(2, value=0, high=True))),
        Rule("prlimit64", AS_IF_DONE, (Condition(1, value=resource.RLIMIT_CORE),)),
        _never_set_id("chmod", 1),
        _never_set_id("fchmod", 1),
        _never_set_id("fchmodat", 2),
        _never_set_id("fchmodat2", 2),
        _never_set_id("mkdir", 1),
        _never_set_id("mkdirat", 2),
        _never_set_id("mknod", 1),
        _never_set_id("mknodat", 2),
        _never_set_id("creat", 1),
        # Without a creating flag the mode is whatever the register held.
        _never_set_id("open", 2, Condition(1, mask=_O_CREATES)),
        _never_set_id("openat", 3, Condition(2, mask=_O_CREATES)),
    ]


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _decision(error: int) -> bytes:
    if error == AS_IF_DONE:
        return _instruction(BPF_RETURN, RETURN_ERRNO)
    return _instruction(BPF_RETURN, RETURN_ERRNO | error if error else RETURN_ALLOW)


def _rule_body(rule: Rule) -> bytes:
    """Return the decision if every condition holds; fall out of the end otherwise."""
    body = _decision(rule.error)
    for condition in reversed(rule.conditions):
        over = len(body) // 8
        # Little-endian: an argument's low half comes first. The kernel's own handlers of all these
        # calls take 32-bit ints, so the high half means nothing, but that of a pointer.
        half = 4 if condition.high else 0
        head = _instruction(BPF_LOAD_WORD, ARGUMENTS_OFFSET + 8 * condition.argument + half)
        if condition.value is None:
            head += _instruction(BPF_JUMP_IF_ANY_BIT, condition.mask, 0, over)
        else:
            if condition.mask != 0xFFFFFFFF:
                head += _instruction(BPF_AND, condition.mask)
            head += _instruction(BPF_JUMP_IF_EQUAL, condition.value, 0, over)
        body = head + body
    return body


def assemble(rules: Iterable[Rule], architecture: Architecture) -> bytes:
    """The BPF program of ``rules``. Calls that the architecture does not have are left out."""
    program = _instruction(BPF_LOAD_WORD, ARCHITECTURE_OFFSET)
    program += _instruction(BPF_JUMP_IF_EQUAL, architecture.audit, 1, 0)
    program += _instruction(BPF_RETURN, RETURN_KILL_PROCESS)
    program += _instruction(BPF_LOAD_WORD, NUMBER_OFFSET)
    if architecture.has_x32:
        program += _instruction(BPF_JUMP_IF_GREATER_OR_EQUAL, _X32_BIT, 0, 1)
        program += _decision(errno.ENOSYS)
    by_call: dict[str, bytes] = {}
    for rule in rules:
        by_call[rule.call] = by_call.get(rule.call, b"") + _rule_body(rule)
    for call, body in by_call.items():
        number = architecture.numbers.get(call)
        if number is None:
            continue
        # A body may end without a decision, and has then overwritten the accumulator.
        body += _decision(0)
        program += _instruction(BPF_JUMP_IF_EQUAL, number, 0, len(body) // 8) + body
    return program + _decision(0)


def native_architecture() -> Architecture | None:
    """This machine's, or None if the filter does not know it."""
    return _ARCHITECTURES.get(platform.machine())
