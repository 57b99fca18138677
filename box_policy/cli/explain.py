"""``box-policy explain``: what would the gate say to these connections, and by which rule?"""

import ipaddress
import json
import re
import socket
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from box_policy.cli.check import read_or_exit
from box_policy.cli.errors import USAGE
from box_policy.policy.addresses import Address, AddressSet, InvalidCidr
from box_policy.policy.domains import InvalidName, canonical_name
from box_policy.policy.quoting import quoted
from box_policy.policy.rules import CompiledPolicy, Operator, Verdict

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


def explain(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A policy, YAML or JSON; - for standard input.")
    ],
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="https://host[:port], http://host[:port], host:port, [address]:port or dns:name.",
        ),
    ],
    resolve: Annotated[
        bool, typer.Option("--resolve", help="Resolve allowed names here, and judge their addresses.")
    ] = False,
    private_range: Annotated[
        list[str] | None,
        typer.Option(metavar="CIDR", help="Special addresses that the gate's operator opens. Repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a target.")] = False,
) -> None:
    """Say what the policy answers to each target: exit 0 if all are allowed, 1 if one is denied.

    The verdicts come from the rules that the gate enforces. A host is judged as if the box spoke TLS
    with SNI, or HTTP; an address as if it named no host.
    """
    try:
        parsed = [parse_target(target) for target in targets]
        ranges = AddressSet(private_range or ())
    except (InvalidTarget, InvalidCidr) as error:
        typer.echo(f"explain: {error}", err=True)
        raise typer.Exit(USAGE) from None
    policy = CompiledPolicy(read_or_exit(file), Operator(private_ranges=ranges))
    verdicts = [(target, judge(policy, target, resolve=resolve)) for target in parsed]
    if as_json:
        for target, verdict in verdicts:
            typer.echo(json.dumps(_as_json(target, verdict)))
    else:
        _print(verdicts)
    raise typer.Exit(0 if all(verdict.allowed for _, verdict in verdicts) else 1)


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


def judge(policy: CompiledPolicy, target: Target, *, resolve: bool) -> Verdict:
    """The verdict on ``target``, by the policy's own rules. The DNS is asked only with ``resolve``."""
    if not isinstance(target.destination, str):
        return policy.judge_address(target.destination)
    name = target.destination
    if target.port is None:
        verdict = policy.judge_question(name, _TYPE_A)
        return policy.judge_answer(name, _addresses(name)) if verdict.allowed and resolve else verdict
    verdict = policy.judge_name(name)
    return policy.judge_resolution(name, _addresses(name)) if verdict.allowed and resolve else verdict


def _name(target: str, host: str) -> str:
    try:
        return canonical_name(host)
    except InvalidName as error:
        raise InvalidTarget(f"{quoted(target)}: {error}") from None


def _addresses(name: str) -> list[Address]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [ipaddress.ip_address(sockaddr[0]) for *_, sockaddr in found]


def _as_json(target: Target, verdict: Verdict) -> dict[str, object]:
    return {
        "target": target.text,
        "allowed": verdict.allowed,
        "reason": verdict.reason.value,
        "rule": verdict.rule,
        "addresses": [str(address) for address in verdict.addresses],
        "dropped": [str(address) for address in verdict.dropped],
    }


def _print(verdicts: list[tuple[Target, Verdict]]) -> None:
    console = Console()
    if not console.is_terminal:
        for target, verdict in verdicts:
            plain = "allow" if verdict.allowed else "deny"
            typer.echo("\t".join((plain, target.text, verdict.reason.value, verdict.rule)))
        return
    table = Table("target", "verdict", "rule", "reason", "addresses")
    for target, verdict in verdicts:
        word = Text("allow", style="green") if verdict.allowed else Text("deny", style="red")
        shown = [str(address) for address in verdict.addresses]
        shown += [f"{address} (dropped)" for address in verdict.dropped]
        # As Text: rich would read square brackets as markup.
        table.add_row(
            Text(target.text), word, Text(verdict.rule), Text(verdict.reason.value), Text("\n".join(shown))
        )
    console.print(table)
