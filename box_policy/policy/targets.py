"""Something that a box may try, in a few words, and what a policy says to it."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address

from box_policy.policy.addresses import Address
from box_policy.policy.domains import InvalidName, canonical_name
from box_policy.policy.quoting import quoted
from box_policy.policy.rules import CompiledPolicy, Verdict

_TYPE_A = 1
_SCHEME_PORTS = {"http": 80, "https": 443}
# Not urllib: that takes hosts and ports which no client would connect to, and forgives what is around them.
_URL = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#\\@]*)(?:[/?#].*)?", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:\[\]]*))(?::(?P<port>[0-9]{1,5}))?")


class InvalidTarget(ValueError):
    """The text is no target. The message says what is wrong with it, and what to write."""


@dataclass(frozen=True, slots=True)
class Target:
    """Something that a box may try."""

    text: str
    destination: str | Address
    """A canonical name, or an address."""
    port: int | None
    """None for a DNS question."""


def parse_target(text: str) -> Target:
    """The target that ``text`` names.

    Raises:
        InvalidTarget: it names none.
    """
    if text.lower().startswith("dns:"):
        return Target(text, _name(text, text[4:]), None)
    url = _URL.fullmatch(text)
    authority = _AUTHORITY.fullmatch(url["authority"] if url else text)
    if authority is None or ("://" in text and url is None):
        raise InvalidTarget(
            f"{quoted(text)} is no target; write https://host, host:port, [address]:port or dns:name"
        )
    port = int(authority["port"]) if authority["port"] else _SCHEME_PORTS[url["scheme"].lower()] if url else 0
    if authority["port"] is None and url is None:
        raise InvalidTarget(f"{quoted(text)} has no port; write https://{text}, {text}:443 or dns:{text}")
    if not 1 <= port <= 65535:
        raise InvalidTarget(f"{quoted(text)}: ports are 1 to 65535")
    if authority["v6"] is not None:
        try:
            return Target(text, IPv6Address(authority["v6"]), port)
        except ValueError:
            raise InvalidTarget(f"{quoted(text)}: {quoted(authority['v6'])} is not an IPv6 address") from None
    try:
        return Target(text, ipaddress.IPv4Address(authority["host"]), port)
    except ValueError:
        return Target(text, _name(text, authority["host"]), port)


def judge_target(
    policy: CompiledPolicy, target: Target, addresses: Iterable[Address] | None = None
) -> Verdict:
    """The verdict on ``target``, by the policy's own rules.

    A host is judged as if the box spoke TLS with SNI, or HTTP; an address as if it named no host.
    ``addresses`` are what the host was found to have; without them the name alone is judged.
    """
    if not isinstance(target.destination, str):
        return policy.judge_address(target.destination)
    name = target.destination
    if target.port is None:
        verdict = policy.judge_question(name, _TYPE_A)
        return verdict if addresses is None or not verdict.allowed else policy.judge_answer(name, addresses)
    return policy.judge_name(name) if addresses is None else policy.judge_resolution(name, addresses)


def verdict_fields(target: Target, verdict: Verdict) -> dict[str, object]:
    """A verdict on a target, ready for JSON."""
    return {
        "target": target.text,
        "allowed": verdict.allowed,
        "reason": verdict.reason.value,
        "rule": verdict.rule,
        "addresses": [str(address) for address in verdict.addresses],
        "dropped": [str(address) for address in verdict.dropped],
    }


def _name(target: str, host: str) -> str:
    try:
        return canonical_name(host)
    except InvalidName as error:
        raise InvalidTarget(f"{quoted(target)}: {error}") from None
