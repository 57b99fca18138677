"""``box-policy explain``: what would the gate say to these connections, and by which rule?"""

import ipaddress
import json
import socket
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from box_policy.cli.check import read_or_exit
from box_policy.cli.errors import USAGE
from box_policy.policy.addresses import Address, AddressSet, InvalidCidr
from box_policy.policy.rules import CompiledPolicy, Operator, Verdict
from box_policy.policy.targets import InvalidTarget, Target, judge_target, parse_target, verdict_fields


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
    verdicts = [(target, _judge(policy, target, resolve)) for target in parsed]
    if as_json:
        for target, verdict in verdicts:
            typer.echo(json.dumps(verdict_fields(target, verdict)))
    else:
        _print(verdicts)
    raise typer.Exit(0 if all(verdict.allowed for _, verdict in verdicts) else 1)


def _judge(policy: CompiledPolicy, target: Target, resolve: bool) -> Verdict:
    verdict = judge_target(policy, target)
    if resolve and verdict.allowed and isinstance(target.destination, str):
        return judge_target(policy, target, _addresses(target.destination))
    return verdict


def _addresses(name: str) -> list[Address]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [ipaddress.ip_address(sockaddr[0]) for *_, sockaddr in found]


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
