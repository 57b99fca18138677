"""A policy from a command's options: a file, a mode, or lists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from box_policy.cli.check import read_or_exit
from box_policy.cli.errors import USAGE, fail
from box_policy.policy.model import NetworkPolicy, PolicyError, PolicyIssue

AllowOption = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Allow a host name, or *.suffix. Repeatable.")
]
AllowCidrOption = Annotated[
    list[str] | None, typer.Option(metavar="CIDR", help="Allow a range of addresses. Repeatable.")
]
DenyCidrOption = Annotated[
    list[str] | None, typer.Option(metavar="CIDR", help="Deny a range, before all that is allowed.")
]
AllowAllOption = Annotated[bool, typer.Option("--allow-all", help="Allow every public address.")]


def chosen_policy(
    file: Path | None,
    allow: Sequence[str] | None,
    allow_cidr: Sequence[str] | None,
    deny_cidr: Sequence[str] | None,
    allow_all: bool,
    deny_all: bool,
    *,
    file_option: str = "--policy",
) -> NetworkPolicy | None:
    """The policy that was typed; None if none was. Ends the command if it is wrong, or if there are two."""
    lists = {"allowed_domains": allow, "allowed_cidrs": allow_cidr, "denied_cidrs": deny_cidr}
    given = {key: list(value) for key, value in lists.items() if value}
    if sum((file is not None, bool(given), allow_all, deny_all)) > 1:
        fail(
            f"give one of {file_option}, --allow-all, --deny-all, "
            "or a list of --allow, --allow-cidr, --deny-cidr",
            USAGE,
        )
    if file is not None:
        return read_or_exit(file)
    if allow_all or deny_all:
        return NetworkPolicy.parse("allow-all" if allow_all else "deny-all")
    if not given:
        return None
    try:
        return NetworkPolicy.parse({"mode": "custom", **given})
    except PolicyError as error:
        fail("\n".join(_as_option(issue) for issue in error.issues), USAGE)


def _as_option(issue: PolicyIssue) -> str:
    """An issue with the option that was typed in place of the key that it became."""
    key = issue.location[0] if issue.location else ""
    options = {"allowed_domains": "--allow", "allowed_cidrs": "--allow-cidr", "denied_cidrs": "--deny-cidr"}
    return f"{options[key]}: {issue.message}" if key in options else str(issue)
