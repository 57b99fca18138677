"""``box-policy check``: is this a policy, and what does it say in canonical form?"""

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from box_policy.cli.errors import USAGE
from box_policy.control.policy_file import PolicyFileError, read_policy
from box_policy.policy.model import NetworkPolicy


def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A policy, YAML or JSON; - for standard input.")
    ],
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print YAML instead of JSON.")] = False,
) -> None:
    """Check a policy and print its canonical form; or name every error with its line, and exit with 2."""
    canonical = read_or_exit(file).canonical()
    if as_yaml:
        typer.echo(yaml.safe_dump(canonical, sort_keys=False), nl=False)
    else:
        typer.echo(json.dumps(canonical, indent=2))


def read_or_exit(file: Path) -> NetworkPolicy:
    """The policy in a file; if there is none, says why on standard error and ends the command with 2."""
    try:
        return read_policy(file)
    except PolicyFileError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(USAGE) from None
