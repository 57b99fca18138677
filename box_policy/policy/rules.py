"""What a policy says about an address, a name or a DNS question. Only here is a verdict made that allows.

The order is fixed: special addresses, then ``denied_cidrs``, then what the mode or the lists allow.
"""

from collections.abc import Container, Iterable
from dataclasses import InitVar, dataclass
from ipaddress import IPv4Address, IPv6Address

from box_policy.policy.addresses import Address, AddressSet, embedded_ipv4, reverse_address, special_range
from box_policy.policy.domains import DomainSet
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.reasons import Reason

_ALLOWING = object()
"""Held by this module alone: without it the constructor of :class:`Verdict` makes no allowing one."""

_TYPE_A = 1
_TYPE_AAAA = 28

_RULE_DENY_ALL = "mode: deny-all"
_RULE_NOTHING = "mode: custom, nothing allowed"
_RULE_ALLOW_ALL = "mode: allow-all"
_RULE_DENYLIST = "mode: custom, only denied_cidrs"
_RULE_NO_DOMAIN = "allowed_domains: no entry matches"
_RULE_NO_CIDR = "allowed_cidrs: no entry matches"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Allow or deny, and why. True in a condition only if it allows."""

    allowed: bool
    reason: Reason
    rule: str = ""
    """The rule that decided, as ``allowed_domains: *.example.com``."""
    addresses: tuple[Address, ...] = ()
    """If allowed: exactly the addresses that may be dialled, or told to the box."""
    dropped: tuple[Address, ...] = ()
    """The resolved addresses that may not."""
    made_by: InitVar[object] = None

    def __post_init__(self, made_by: object) -> None:
        if self.allowed and made_by is not _ALLOWING:
            raise TypeError("only box_policy.policy.rules makes a verdict that allows")

    @classmethod
    def denied(cls, reason: Reason, rule: str = "", dropped: tuple[Address, ...] = ()) -> "Verdict":
        """A verdict that denies: open to all."""
        return cls(False, reason, rule, (), dropped)

    def __bool__(self) -> bool:
        return self.allowed


@dataclass(frozen=True)
class Operator:
    """What the operator of the gate sets and no policy can."""

    private_ranges: AddressSet = AddressSet(())  # noqa: RUF009 (never changes once built)
    """Special addresses that count as ordinary. A metadata service opens only to an entry of its own size."""
    own_addresses: Container[Address] = frozenset()
    """The gate's own addresses: always special. May be a live object; it is asked at every verdict."""
    deny_ech: bool = False
    """Deny TLS hellos that carry Encrypted Client Hello."""
    resolve_for_cidrs: bool = False
    """Let a policy that allows by CIDR alone resolve names, to addresses inside ``allowed_cidrs``."""


class CompiledPolicy:
    """A policy in the form that judges. Never changes; a new policy is a new object."""

    def __init__(self, policy: NetworkPolicy, operator: Operator = Operator()) -> None:
        self.policy = policy
        self.operator = operator
        self._domains = DomainSet(policy.allowed_domains or ())
        self._allowed = AddressSet(policy.allowed_cidrs or ())
        self._denied = AddressSet(policy.denied_cidrs or ())
        self._nothing: str | None = None
        self._everything: str | None = None
        match policy.kind:
            case "allow-all":
                self._everything = _RULE_ALLOW_ALL
            case "denylist":
                self._everything = _RULE_DENYLIST
            case "deny-all":
                self._nothing = _RULE_DENY_ALL if policy.mode == "deny-all" else _RULE_NOTHING
            case "allowlist":
                pass
        self._names_for_cidrs = (
            operator.resolve_for_cidrs
            and policy.kind == "allowlist"
            and not self._domains
            and bool(self._allowed)
        )

    def judge_address(self, address: Address) -> Verdict:
        """May the box reach ``address`` by the address alone, without a name?"""
        blocked = self._blocked(address)
        if blocked is not None:
            return Verdict.denied(*blocked)
        if self._nothing is not None:
            return Verdict.denied(Reason.DENY_ALL, self._nothing)
        if self._everything is not None:
            return Verdict(True, Reason.MODE_ALLOWS, self._everything, (address,), made_by=_ALLOWING)
        entry = self._allowed.match(address)
        if entry is None:
            return Verdict.denied(Reason.ADDRESS_NOT_ALLOWED, _RULE_NO_CIDR)
        return Verdict(True, Reason.CIDR_ALLOWED, f"allowed_cidrs: {entry}", (address,), made_by=_ALLOWING)

    def judge_name(self, name: str) -> Verdict:
        """Is ``name`` (canonical) allowed at all? What may be dialled, :meth:`judge_resolution` says."""
        if self._nothing is not None:
            return Verdict.denied(Reason.DENY_ALL, self._nothing)
        if self._everything is not None:
            return Verdict(True, Reason.MODE_ALLOWS, self._everything, made_by=_ALLOWING)
        pattern = self._domains.match(name)
        if pattern is None:
            return Verdict.denied(Reason.NAME_NOT_ALLOWED, _RULE_NO_DOMAIN)
        return Verdict(True, Reason.NAME_ALLOWED, f"allowed_domains: {pattern}", made_by=_ALLOWING)

    def judge_resolution(self, name: str, addresses: Iterable[Address]) -> Verdict:
        """Is ``name`` allowed, and which of the ``addresses`` it just resolved to may be dialled?"""
        verdict = self.judge_name(name)
        if not verdict.allowed:
            return verdict
        kept: dict[Address, None] = {}
        dropped: dict[Address, str] = {}
        for address in addresses:
            blocked = self._blocked(address)
            if blocked is None:
                kept[address] = None
            else:
                dropped[address] = blocked[1]
        return _chosen(verdict, kept, dropped)

    def judge_question(self, name: str, qtype: int) -> Verdict:
        """May this DNS question be asked upstream?

        ``qtype`` is the number of the record type. Which types the gate answers by itself, as
        HTTPS and SVCB, is the gate's affair: the verdict is on the name. What the name of an address is
        that the box can't reach, it can't ask either: that would tell of networks that it doesn't see.
        """
        address = reverse_address(name)
        blocked = self._blocked(address) if address is not None else None
        if blocked is not None:
            return Verdict.denied(*blocked)
        if self._names_for_cidrs:
            if qtype not in (_TYPE_A, _TYPE_AAAA):
                return Verdict.denied(Reason.NAME_NOT_ALLOWED, _RULE_NO_DOMAIN)
            return Verdict(True, Reason.CIDR_ALLOWED, "operator: resolve_for_cidrs", made_by=_ALLOWING)
        return self.judge_name(name)

    def judge_answer(self, name: str, addresses: Iterable[Address]) -> Verdict:
        """Which of the ``addresses`` that ``name`` just resolved to may be told to the box?

        An answer without any address needs no verdict; like an empty resolution it is
        ``RESOLUTION_FAILED``.
        """
        if not self._names_for_cidrs:
            return self.judge_resolution(name, addresses)
        # The name itself is not allowed: only an address that the box could reach without it is told.
        kept: dict[Address, None] = {}
        dropped: dict[Address, str] = {}
        refusal: Verdict | None = None
        for address in addresses:
            verdict = self.judge_address(address)
            if verdict.allowed:
                kept[address] = None
            else:
                dropped[address] = verdict.rule
                if refusal is None:  # not "or": a verdict that denies is false
                    refusal = verdict
        asked = Verdict(True, Reason.CIDR_ALLOWED, "operator: resolve_for_cidrs", made_by=_ALLOWING)
        if refusal is not None and not kept and refusal.reason is Reason.ADDRESS_NOT_ALLOWED:
            return Verdict.denied(refusal.reason, refusal.rule, tuple(dropped))
        return _chosen(asked, kept, dropped)

    def _blocked(self, address: Address) -> tuple[Reason, str] | None:
        """Why ``address`` is out of reach whatever is allowed, or None: special, or denied."""
        special = self._special(address)
        if special is not None:
            return Reason.SPECIAL_ADDRESS, special
        if self._denied:
            entry = self._denied.match(address)
            if entry is None and isinstance(address, IPv6Address):
                # Denied as IPv4 is denied in every IPv6 spelling of it.
                for embedded in embedded_ipv4(address):
                    entry = entry or self._denied.match(embedded)
            if entry is not None:
                return Reason.CIDR_DENIED, f"denied_cidrs: {entry}"
        return None

    def _special(self, address: Address) -> str | None:
        operator = self.operator
        if address in operator.own_addresses:
            return "special: address of the gate itself"
        found = special_range(address)
        if found is not None:
            entry = operator.private_ranges.match(address)
            # A range opened for a private network does not open the metadata service that hides in it.
            if entry is None or (found.metadata and not _names_it(entry, found.network.prefixlen)):
                return f"special: {found.name} ({found.source})"
        if isinstance(address, IPv4Address):
            return None
        if address.scope_id is not None:
            return "special: address with a zone (RFC 4007)"
        for embedded in embedded_ipv4(address):
            inner = self._special(embedded)
            if inner is not None:
                return inner
        return None


def _names_it(entry: str, prefixlen: int) -> bool:
    return int(entry.rpartition("/")[2]) >= prefixlen


def _chosen(verdict: Verdict, kept: dict[Address, None], dropped: dict[Address, str]) -> Verdict:
    """``verdict``, which allows the name, narrowed to the addresses kept."""
    if kept:
        return Verdict(True, verdict.reason, verdict.rule, tuple(kept), tuple(dropped), made_by=_ALLOWING)
    if not dropped:
        return Verdict.denied(Reason.RESOLUTION_FAILED, verdict.rule)
    return Verdict.denied(Reason.RESOLVED_SPECIAL, next(iter(dropped.values())), tuple(dropped))
