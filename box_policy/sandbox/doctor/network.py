"""The network of a box, in a namespace that ends with the trial: rules, redirects, address families."""

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from box_policy.sandbox.doctor.findings import Finding, Remedy
from box_policy.sandbox.doctor.host import Host, module_is_installed
from box_policy.sandbox.doctor.remedies import load_modules, on_the_host, whole_proc
from box_policy.sandbox.doctor.trial import Outcome, Trial, attempt
from box_policy.sandbox.doctor.user_namespaces import enter_user_namespace
from box_policy.sandbox.launcher import Listeners

_SECONDS: Final = 10.0
_PATIENCE: Final = 2.0
"""Seconds for what takes a millisecond."""
_PORT: Final = 443
_DESTINATIONS: Final = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Of the ranges for documentation, RFC 5737 and RFC 3849: what the rules fail to catch has nowhere to go."""

# linux/netfilter/nf_tables.h
_CHAIN_TYPE: Final = 7
_EXPRESSION_NAME: Final = 1
_MODULES: Final = {
    (_CHAIN_TYPE, b"nat"): ("nft_chain_nat", "nf_nat"),
    (_EXPRESSION_NAME, b"redir"): ("nft_redir",),
    (_EXPRESSION_NAME, b"fib"): ("nft_fib_inet",),
    (_EXPRESSION_NAME, b"reject"): ("nft_reject_inet",),
}
"""The modules behind a part of the rules, by the attribute and the name that it has in messages."""
_CORE: Final = ("nf_tables",)
_LENGTH: Final = struct.Struct("=I")
_ATTRIBUTE: Final = struct.Struct("=H")


def check_network(host: Host) -> list[Finding]:
    """nf_tables, what connection tracking tells, and IPv6."""
    return judge_network(host, attempt(_make_network, _SECONDS))


def _make_network(trial: Trial) -> None:
    from box_policy.sandbox.namespaces import network, network_messages

    messages = network_messages.encode()
    try:
        enter_user_namespace(trial)
    except OSError:
        if os.geteuid() != 0:
            raise  # root can do without, as far as this goes
    trial.step("network namespace")
    os.unshare(os.CLONE_NEWNET)
    trial.tell("namespace", True)
    trial.step("settings of the network namespace")
    families = network.write_settings()
    trial.tell("ipv6", socket.AF_INET6 in families)
    try:
        trial.step("network of a box")
        listeners = network.make_network(messages, families)
    except OSError as error:
        trial.step(str(error.filename or "listeners"))
        if error.filename == "nf_tables" and error.errno not in (errno.EPERM, errno.EACCES):
            trial.tell("modules", missing_modules(messages.rules))
        raise
    trial.tell("rules", True)
    _use(trial, listeners)


def missing_modules(rules: bytes) -> Sequence[str]:
    """The modules without which the kernel refuses these rules in this network namespace.

    A refused transaction leaves nothing: so the longest part that is taken is looked for from the end on.
    """
    from box_policy.sandbox import netlink

    begin, *parts, end = _split(rules)
    for count in range(len(parts) - 1, 0, -1):
        try:
            netlink.transact(netlink.NETLINK_NETFILTER, b"".join((begin, *parts[:count], end)))
        except OSError:
            continue
        before = b"".join(parts[:count])
        for (attribute, name), modules in _MODULES.items():
            named = _ATTRIBUTE.pack(attribute) + name + b"\0"
            if named in parts[count] and named not in before:
                return modules
        return _CORE
    return _CORE


def _split(messages: bytes) -> Iterator[bytes]:
    while len(messages) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(messages)
        yield messages[:length]
        messages = messages[(length + 3) & ~3 :]


def _use(trial: Trial, listeners: Listeners) -> None:
    """Do what a box's programs do, and see it arrive."""
    from box_policy.gate.destination import original_destination

    for listener, dns in zip(listeners.tcp, listeners.dns_udp, strict=True):
        address = _DESTINATIONS[listener.family]
        trial.step(f"connection to {address}")
        with socket.socket(listener.family) as client:
            client.settimeout(_PATIENCE)
            client.connect((address, _PORT))
            with _accepted(listener) as server:
                trial.step("SO_ORIGINAL_DST")
                told = original_destination(server)
                if (str(told.address), told.port) != (address, _PORT):
                    raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        trial.step(f"datagram to {address}")
        with socket.socket(listener.family, socket.SOCK_DGRAM) as client:
            client.sendto(b"question", (address, 53))
            _await(dns)
            try:
                client.sendto(b"question", (address, _PORT))
            except OSError:
                continue
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))


def _accepted(listener: socket.socket) -> socket.socket:
    _await(listener)
    return listener.accept()[0]


def _await(sock: socket.socket) -> None:
    if not select.select([sock], [], [], _PATIENCE)[0]:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def judge_network(host: Host, outcome: Outcome) -> list[Finding]:
    """What the trial of a box's network says."""
    facts, failure = outcome.facts, outcome.failure
    rules, destination, ipv6 = "nf_tables", "original destination", "IPv6"
    if not facts.get("namespace"):
        found = f"can't be tried: {failure}"
        return [Finding(name, "missing", found) for name in (rules, destination, ipv6)]
    findings = []
    if facts.get("rules"):
        findings.append(Finding(rules, "ok", "redirects, address types and refusals can be had"))
        if failure is None:
            findings.append(Finding(destination, "ok", "connection tracking tells it"))
        else:
            remedy = load_modules(
                host, ("nf_conntrack", "nf_nat"), _installed(host, ("nf_conntrack", "nf_nat"))
            )
            findings.append(Finding(destination, "missing", str(failure), (remedy,)))
    else:
        findings.append(_no_rules(rules, host, outcome))
        findings.append(Finding(destination, "missing", "can't be tried without the rules"))
    findings.append(_ipv6(ipv6, host, facts.get("ipv6")))
    return findings


def _no_rules(name: str, host: Host, outcome: Outcome) -> Finding:
    failure = outcome.failure
    modules = tuple(outcome.facts.get("modules") or ())
    if failure is None or not modules:
        return Finding(name, "missing", str(failure), whole_proc(host))
    found = f"{failure}; without {', '.join(modules)}"
    return Finding(name, "missing", found, (load_modules(host, modules, _installed(host, modules)),))


def _installed(host: Host, modules: tuple[str, ...]) -> bool | None:
    states = [module_is_installed(host, module) for module in modules]
    return None if None in states else all(states)


def _ipv6(name: str, host: Host, present: bool | None) -> Finding:
    if present:
        return Finding(name, "ok", "new network namespaces have it")
    if present is None:
        return Finding(name, "missing", "can't be tried without a network namespace's settings")
    return Finding(
        name,
        "limited",
        "new network namespaces have none: boxes have IPv4 alone",
        (
            Remedy(
                "If boxes are to have it: start the kernel without ipv6.disable=1 and ipv6.disable_ipv6=1"
                f"{on_the_host(host)}, and see that these are 0:",
                ("sysctl net.ipv6.conf.all.disable_ipv6 net.core.devconf_inherit_init_net",),
            ),
        ),
    )
