"""The system call filter of a box's container, in Docker's own form.

pid 1 gives itself and every program the filters of ``namespaces.seccomp``; this one holds for whatever
else is started in the container (``docker exec``), too. It is made from the same rules, where the form has
words for them: its rules have no order, so a call with exceptions is told what remains without them.
"""

import errno
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from box_policy.sandbox.namespaces import seccomp
from box_policy.sandbox.namespaces.seccomp import AF_NETLINK, AS_IF_DONE, PROTOCOLS, Condition, Rule

type _Entry = dict[str, Any]

_ARCHITECTURES = {seccomp.X86_64.audit: "SCMP_ARCH_X86_64", seccomp.AARCH64.audit: "SCMP_ARCH_AARCH64"}
_ALL_BITS = 0xFFFFFFFF
_AF_UNIX = 1
_SOCKETS = ("socket", "socketpair")


def profile() -> str:
    """The profile, as the ``seccomp`` security option takes it."""
    rules = seccomp.box_rules()
    # A call that some rule permits, for some arguments, has exceptions.
    excepted = {rule.call for rule in rules if rule.error == 0} | set(_SOCKETS)
    entries = list(_sockets())
    for rule in rules:
        if rule.call not in excepted and rule.error != AS_IF_DONE:
            entries.extend(_entries(rule))
    architecture = seccomp.native_architecture()
    names = [] if architecture is None else [_ARCHITECTURES[architecture.audit]]
    return json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "architectures": names, "syscalls": entries})


def _entries(rule: Rule) -> Iterator[_Entry]:
    """One for each way in which all conditions can hold: that of any bit, for each bit."""
    for arguments in itertools.product(*(_arguments(condition) for condition in rule.conditions)):
        yield _entry(rule.call, rule.error, arguments)


def _arguments(condition: Condition) -> list[_Entry]:
    if condition.value is not None:
        return [_equal(condition.argument, condition.value, condition.mask)]
    bits = (1 << bit for bit in range(32) if condition.mask & 1 << bit)
    return [_equal(condition.argument, bit, bit) for bit in bits]


def _sockets() -> Iterator[_Entry]:
    for call in _SOCKETS:
        families = [_AF_UNIX] if call == "socketpair" else [_AF_UNIX, *PROTOCOLS]
        for argument in _all_but(0, families):
            yield _entry(call, errno.EAFNOSUPPORT, [argument])
    for family, protocols in PROTOCOLS.items():
        own = _equal(0, family)
        for argument in _all_but(2, protocols):
            yield _entry("socket", errno.EPROTONOSUPPORT, [own, argument])
        if family != AF_NETLINK:
            for error, kind in seccomp.INTERNET_KINDS_NOT:
                for argument in _arguments(kind):
                    yield _entry("socket", error, [own, argument])


def _all_but(index: int, values: Iterable[int]) -> Iterator[_Entry]:
    """Together: any 32 bits but these values. Each says which bits lead down from the one that differs."""
    wanted = set(values)
    pending = [(0, 0)]  # a value and how many of its highest bits count
    while pending:
        value, length = pending.pop()
        shift = 32 - length
        if not any(other >> shift == value >> shift for other in wanted):
            yield _equal(index, value, _ALL_BITS >> shift << shift)
        elif length < 32:
            pending += [(value, length + 1), (value | 1 << shift - 1, length + 1)]


def _equal(index: int, value: int, mask: int = _ALL_BITS) -> _Entry:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _entry(call: str, error: int, arguments: Iterable[_Entry]) -> _Entry:
    return {"names": [call], "action": "SCMP_ACT_ERRNO", "errnoRet": error, "args": list(arguments)}
