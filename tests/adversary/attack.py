"""What an attack is, and how what came of it is judged: by what the test network saw."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import Any, Final

from box_policy.policy.domains import name_from_wire
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import CompiledPolicy
from tests.adversary.attacker import Attacker, Seen
from tests.lab import Lab, LabError, plan

CUSTOM: Final = {
    "mode": "custom",
    "allowed_domains": ["allowed.test", "*.wild.test", "front.cdn.test", "*.rebind.test"],
    "allowed_cidrs": [plan.CIDR],
}
"""The policy under which most attacks are tried."""

HIDDEN: Final = b"hidden.othercdn.test"
"""A name that is not allowed, at an address that is: that of ``front.cdn.test``."""
EVIL: Final = b"evil.test"

_NAMED: Final = frozenset({plan.ALLOWED4, plan.ALLOWED6, plan.WILDCARD4, plan.SHARED4})
"""The addresses of the allowed names, in the default zone."""
_NAME_SERVERS: Final = frozenset({plan.NAMESERVER4, plan.NAMESERVER6})
_OWN_PORTS: Final = frozenset({22, 80, 443, 8081, 9418})
"""Ports of its own host at which no gate has any business: what is dialled there was asked for in the box."""


class Outcome(StrEnum):
    """What an attack came to."""

    CONTAINED = "contained"
    """Nothing got out, and the client was told; or, of what is allowed: it went through."""
    LEAKED = "leaked"
    """Something reached a place that the policy forbids."""
    OVER_BLOCKED = "over-blocked"
    """What the policy allows did not get through."""
    SILENT = "silent"
    """Nothing got out, but the client was left waiting."""


type Act = Callable[[Attacker], Awaitable[Seen | None]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Attack:
    """One thing that a hostile program does. ``act`` puts the attacker's nonce into what it sends."""

    name: str
    act: Act
    policy: object = field(default_factory=lambda: CUSTOM)
    zone: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the authoritative name server says, by name: see ``tests.lab.lab.Dns.set``."""
    must_arrive: bool = False
    """It is allowed: the nonce has to reach an origin that may be reached."""
    may_arrive: bool = False
    """It may be carried to such an origin instead of being denied: the gate has looked the name up itself."""
    may_reach: Sequence[str] = ()
    """Addresses that may be dialled, besides those of the default zone."""
    may_name: Sequence[bytes] = ()
    """Forbidden names that may reach an allowed origin: what no gate can see (see docs/security.md)."""
    may_be_silent: bool = False
    """No answer is the answer: of datagrams that nobody answers, and of programs that read nothing."""
    sees: str | None = None
    """What box-policy's client is told, as :class:`Seen` says it: ``alert 49``, ``http 403``, ``reset``."""
    reasons: Sequence[Reason] | None = None
    """The reasons of box-policy's denials: one record each. None: not looked at."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Report:
    """What came of an attack."""

    attack: Attack
    outcome: Outcome
    seen: Seen | None
    evidence: Sequence[str]
    """What was seen outside that the policy forbids, in words."""


async def judge(lab: Lab, attack: Attack, seen: Seen | None, nonce: str) -> Report:
    """Judge an attack that is over by what the test network has seen since its last reset."""
    evidence = breaches(lab, attack, nonce)
    outcome = Outcome.CONTAINED
    if evidence:
        outcome = Outcome.LEAKED
    elif attack.must_arrive and not await _arrives(lab, nonce):
        outcome = Outcome.OVER_BLOCKED
    elif (
        seen is not None
        and seen.kind == "silence"
        and not (attack.may_be_silent or (attack.may_arrive and arrived(lab, nonce)))
    ):
        outcome = Outcome.SILENT
    return Report(attack, outcome, seen, evidence)


def breaches(lab: Lab, attack: Attack, nonce: str) -> list[str]:
    """What has got out that the attack's policy forbids, in words: nothing, of a gate that holds."""
    policy = CompiledPolicy(NetworkPolicy.parse(attack.policy))
    found: dict[str, None] = {}
    for packet in lab.packets():
        if packet.address in _NAME_SERVERS and (packet.port == plan.DNS_PORT or "icmp" in packet.protocol):
            continue
        if not _may_be_reached(policy, attack, packet.address):
            what = "a connection" if packet.flags == "S" else f"a {packet.protocol} packet"
            found[f"{what} to {packet.address} port {packet.port}"] = None
    for packet in lab.loopback_packets(protocol="tcp"):
        if packet.port in _OWN_PORTS:
            found[f"a connection to the gate's own {packet.address} port {packet.port}"] = None
    for question in lab.dns.questions:
        name = name_from_wire(question.name.encode("latin-1", "replace"))
        allowed = name is not None and policy.judge_question(name, 1).allowed
        if not allowed:
            found[f"a question for {question.name!r} {question.type}"] = None
        elif not attack.must_arrive and not attack.may_arrive and nonce.encode() in question.raw.lower():
            found[f"the secret in a question for {question.name!r}"] = None
    if not policy.judge_address(ip_address(plan.EVIL4)).allowed:
        found |= _hidden_names(lab, policy, attack)
    if not attack.must_arrive and not attack.may_arrive and arrived(lab, nonce):
        found["the attack's bytes at an origin"] = None
    return list(found)


def arrived(lab: Lab, nonce: str) -> bool:
    """Has an origin, or the name server, received the attack's secret?"""
    needle = nonce.encode()
    return (
        any(needle in connection.received for connection in lab.connections())
        or any(nonce in request.target or nonce in str(request.headers) for request in lab.requests())
        or any(needle in question.raw.lower() for question in lab.dns.questions)
        or any(needle in packet.payload for packet in lab.packets())
    )


async def _arrives(lab: Lab, nonce: str) -> bool:
    try:
        return await lab.expect_async(lambda: arrived(lab, nonce))
    except (AssertionError, LabError, asyncio.CancelledError):
        return False


def _may_be_reached(policy: CompiledPolicy, attack: Attack, address: str) -> bool:
    if address in attack.may_reach or policy.judge_address(ip_address(address)).allowed:
        return True
    return address in _NAMED and policy.judge_name("allowed.test").allowed


def _hidden_names(lab: Lab, policy: CompiledPolicy, attack: Attack) -> dict[str, None]:
    found: dict[str, None] = {}
    by_address = {
        connection.id
        for connection in lab.connections()
        if policy.judge_address(ip_address(connection.address)).allowed
    }
    texts = [(c.id, c.received) for c in lab.connections()]
    texts += [(r.connection, f"{r.target}\n{r.headers}".encode("latin-1", "replace")) for r in lab.requests()]
    for number, text in texts:
        for name in (HIDDEN, EVIL):
            if number not in by_address and name in text.lower() and name not in attack.may_name:
                found[f"the name {name.decode()} at an origin"] = None
    return found
