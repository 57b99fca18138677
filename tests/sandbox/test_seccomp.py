"""The system call filter: what it decides, for both architectures, by an interpreter of its BPF."""

import errno
import os
import resource
import struct

import pytest

from box_policy.sandbox.namespaces import seccomp
from box_policy.sandbox.namespaces.seccomp import AARCH64, X86_64, Architecture, assemble, box_rules

ARCHITECTURES = {"x86_64": X86_64, "aarch64": AARCH64}
ALLOW = seccomp.RETURN_ALLOW
KILL = seccomp.RETURN_KILL_PROCESS
I386 = 0x40000003


def refused(error: int) -> int:
    return seccomp.RETURN_ERRNO | error


def execute(program: bytes, data: bytes) -> int:
    """The verdict of a classic BPF program on a struct seccomp_data, as the kernel would reach it."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator: int = 0
    counter: int = 0
    while True:
        code, if_true, if_false, operand = instructions[counter]
        counter += 1
        match code:
            case seccomp.BPF_LOAD_WORD:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case seccomp.BPF_AND:
                accumulator &= operand
            case seccomp.BPF_JUMP_IF_EQUAL:
                counter += if_true if accumulator == operand else if_false
            case seccomp.BPF_JUMP_IF_GREATER_OR_EQUAL:
                counter += if_true if accumulator >= operand else if_false
            case seccomp.BPF_JUMP_IF_ANY_BIT:
                counter += if_true if accumulator & operand else if_false
            case seccomp.BPF_RETURN:
                return int(operand)
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


def verdict(architecture: Architecture, number: int, *arguments: int, audit: int | None = None) -> int:
    called_by = architecture.audit if audit is None else audit
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, called_by, 0, *padded)
    return execute(assemble(box_rules(), architecture), data)


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("socket", (1, 1), ALLOW),
        ("socket", (2, 1), ALLOW),
        ("socket", (10, 2), ALLOW),
        ("socket", (2, 1, 6), ALLOW),
        ("socket", (2, 1 | os.O_CLOEXEC, 262), ALLOW),
        ("socket", (2, 3, 6), refused(errno.EPERM)),
        ("socket", (10, 3 | os.O_NONBLOCK, 255), refused(errno.EPERM)),
        ("socket", (2, 5, 0), refused(errno.ESOCKTNOSUPPORT)),
        ("socket", (10, 10, 0), refused(errno.ESOCKTNOSUPPORT)),
        ("socket", (2, 0, 6), refused(errno.ESOCKTNOSUPPORT)),
        ("socket", (2, 1, 132), refused(errno.EPROTONOSUPPORT)),
        ("socket", (10, 2, 115), refused(errno.EPROTONOSUPPORT)),
        ("socket", (2, 2, 1 << 32 | 136), refused(errno.EPROTONOSUPPORT)),
        ("socket", (16, 3, 0), ALLOW),
        ("socket", (16, 2, 4), ALLOW),
        ("socket", (16, 3, 12), refused(errno.EPROTONOSUPPORT)),
        ("socket", (40, 1), refused(errno.EAFNOSUPPORT)),
        ("socket", (17, 3), refused(errno.EAFNOSUPPORT)),
        ("socket", (0, 1), refused(errno.EAFNOSUPPORT)),
        ("socket", (1 << 32 | 40, 1), refused(errno.EAFNOSUPPORT)),
        ("socketpair", (1, 1), ALLOW),
        ("socketpair", (30, 1), refused(errno.EAFNOSUPPORT)),
        ("clone", (17,), ALLOW),
        ("clone", (seccomp.CLONE_NEWUSER | 17,), refused(errno.EPERM)),
        ("clone3", (), refused(errno.ENOSYS)),
        ("clone", (0x1000000 | 17,), ALLOW),
        ("clone", (0x40000000 | 17,), refused(errno.EPERM)),
        ("unshare", (0x600,), ALLOW),
        ("unshare", (0x20000,), refused(errno.EPERM)),
        ("unshare", (0x80,), refused(errno.EPERM)),
        ("unshare", (seccomp.CLONE_NEWUSER | 0x20000,), refused(errno.EPERM)),
        ("io_uring_setup", (), refused(errno.ENOSYS)),
        ("openat2", (), refused(errno.ENOSYS)),
        ("mount", (), refused(errno.EPERM)),
        ("open_tree_attr", (), refused(errno.EPERM)),
        ("setns", (), refused(errno.EPERM)),
        ("ioctl", (0, 0x5413), ALLOW),
        ("ioctl", (0, seccomp.TIOCSTI), refused(errno.EPERM)),
        ("ioctl", (0, 0xFFFFFFFF << 32 | seccomp.TIOCSTI), refused(errno.EPERM)),
        ("ioctl", (0, seccomp.TIOCLINUX), refused(errno.EPERM)),
        ("ioctl", (0, 0x5423), refused(errno.EPERM)),
        ("syslog", (3,), refused(errno.EPERM)),
        ("setrlimit", (resource.RLIMIT_NOFILE, 1), ALLOW),
        ("setrlimit", (resource.RLIMIT_CORE, 1), refused(0)),
        ("prlimit64", (0, resource.RLIMIT_NOFILE, 1), ALLOW),
        ("prlimit64", (0, resource.RLIMIT_CORE, 0, 1), ALLOW),
        ("prlimit64", (1, resource.RLIMIT_NOFILE, 1), refused(errno.EPERM)),
        ("prlimit64", (0, resource.RLIMIT_CORE, 1), refused(0)),
        ("prlimit64", (0, resource.RLIMIT_CORE, 1 << 32), refused(0)),
        ("fchmod", (3, 0o755), ALLOW),
        ("fchmod", (3, 0o1777), ALLOW),
        ("fchmod", (3, 0o4755), refused(errno.EPERM)),
        ("fchmod", (3, 0o2755), refused(errno.EPERM)),
        ("fchmodat", (-100 & 0xFFFFFFFF, 1, 0o4755), refused(errno.EPERM)),
        ("fchmodat2", (3, 1, 0o4755), refused(errno.EPERM)),
        ("mkdirat", (3, 1, 0o755), ALLOW),
        ("mkdirat", (3, 1, 0o2755), refused(errno.EPERM)),
        ("mknodat", (3, 1, 0o104755), refused(errno.EPERM)),
        ("openat", (3, 1, os.O_CREAT | os.O_WRONLY, 0o644), ALLOW),
        ("openat", (3, 1, os.O_CREAT | os.O_WRONLY, 0o4755), refused(errno.EPERM)),
        ("openat", (3, 1, os.O_TMPFILE | os.O_WRONLY, 0o4755), refused(errno.EPERM)),
        ("openat", (3, 1, os.O_RDONLY, 0o4755), ALLOW),
        ("openat", (3, 1, os.O_DIRECTORY, 0o4755), ALLOW),
    ],
)
def test_verdicts(architecture: Architecture, call: str, arguments: tuple[int, ...], expected: int) -> None:
    assert verdict(architecture, architecture.numbers[call], *arguments) == expected


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("chmod", (1, 0o4755)),
        ("creat", (1, 0o4755)),
        ("mkdir", (1, 0o2755)),
        ("mknod", (1, 0o104755)),
        ("open", (1, os.O_CREAT, 0o4755)),
    ],
)
def test_older_calls_that_only_x86_has(call: str, arguments: tuple[int, ...]) -> None:
    assert verdict(X86_64, X86_64.numbers[call], *arguments) == refused(errno.EPERM)
    assert call not in AARCH64.numbers


def test_calls_without_a_rule_are_allowed(architecture: Architecture) -> None:
    for number in set(range(470)) - set(architecture.numbers.values()):
        assert verdict(architecture, number, *[0xFFFFFFFFFFFFFFFF] * 6) == ALLOW


def test_another_convention_ends_the_program(architecture: Architecture) -> None:
    others = {I386, 0x40000028, X86_64.audit, AARCH64.audit} - {architecture.audit}
    for audit in others:
        assert verdict(architecture, 1, audit=audit) == KILL


def test_x32_calls_do_not_exist() -> None:
    assert verdict(X86_64, 0x40000000 | X86_64.numbers["socket"], 1, 1) == refused(errno.ENOSYS)
    assert verdict(X86_64, -1) == refused(errno.ENOSYS)


def test_every_rule_is_about_a_call_of_some_architecture() -> None:
    known = X86_64.numbers.keys() | AARCH64.numbers.keys()
    assert {rule.call for rule in box_rules()} <= known
    assert known <= {rule.call for rule in box_rules()}


def test_numbers_are_used_once(architecture: Architecture) -> None:
    assert len(set(architecture.numbers.values())) == len(architecture.numbers)


def test_programs_are_within_the_kernels_limit(architecture: Architecture) -> None:
    program = assemble(box_rules(), architecture)
    instructions = list(struct.iter_unpack("=HBBI", program))
    assert len(instructions) <= 4096
    for position, (code, if_true, if_false, _) in enumerate(instructions):
        if code in (
            seccomp.BPF_JUMP_IF_EQUAL,
            seccomp.BPF_JUMP_IF_GREATER_OR_EQUAL,
            seccomp.BPF_JUMP_IF_ANY_BIT,
        ):
            assert position + 1 + max(if_true, if_false) < len(instructions)
    assert instructions[-1][0] == seccomp.BPF_RETURN
