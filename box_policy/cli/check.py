"""``box-policy check``: is this a policy, and what does it say in canonical form?"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from box_policy.policy.document import MAX_BYTES, DocumentError, parse_document
from box_policy.policy.model import NetworkPolicy

STANDARD_INPUT = "-"


def check(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A policy, YAML or JSON; - for standard input.")
    ],
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print YAML instead of JSON.")] = False,
) -> None:
    """Check a policy and print its canonical form; or name every error with its line, and exit with 2."""
    canonical = read_policy(file).canonical()
    if as_yaml:
        typer.echo(yaml.safe_dump(canonical, sort_keys=False), nl=False)
    else:
        typer.echo(json.dumps(canonical, indent=2))


def read_policy(file: str) -> NetworkPolicy:
    """The policy in ``file``; if there is none, says why on standard error and ends the command with 2."""
    name = "<stdin>" if file == STANDARD_INPUT else file
    try:
        return parse_document(_read(file), name=name)
    except OSError as error:
        message = f"{name}: {error.strerror or error}"
    except DocumentError as error:
        message = str(error)
    typer.echo(message, err=True)
    raise typer.Exit(2)


def _read(file: str) -> bytes:
    # One byte over the bound is enough for the parser to refuse, however much there is.
    if file == STANDARD_INPUT:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with Path(file).open("rb") as stream:
        return stream.read(MAX_BYTES + 1)
