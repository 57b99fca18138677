"""The options with which commands say what no policy can, and what they take."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Annotated

import typer

from box_policy.cli.errors import USAGE, fail
from box_policy.gate.limits import Limits

PrivateRangeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CIDR",
        envvar="BOX_POLICY_PRIVATE_RANGES",
        help="Let policies open a private range. Repeatable.",
    ),
]
NameServerOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ADDRESS",
        envvar="BOX_POLICY_NAME_SERVERS",
        help="Ask this name server, not those of resolv.conf. Repeatable.",
    ),
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        envvar="BOX_POLICY_LIMITS",
        help="What each box may cost the gate: connections=512. Repeatable.",
    ),
]


def name_server_address(server: str) -> str:
    """The address of a name server that was typed. Ends the command if it is none."""
    try:
        return str(ip_address(server))
    except ValueError:
        fail(f"--name-server: {server!r} is not an IP address", USAGE)


def chosen_limits(given: Sequence[str] | None) -> Limits:
    """The limits that were typed. Ends the command if they are none."""
    try:
        return Limits.parse(given or ())
    except ValueError as error:
        fail(f"--limit: {error}", USAGE)
