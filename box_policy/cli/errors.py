"""How a command says that it can't go on."""

from typing import NoReturn

import typer

USAGE = 2
"""Exit status: what was typed, or what is in a named file, is wrong."""
FAILURE = 1
"""Exit status: this machine can't do it."""


def fail(message: str, status: int = FAILURE) -> NoReturn:
    """Print what is wrong, where, and what to do, and end the command."""
    for line in message.splitlines():
        typer.echo(f"box-policy: {line}", err=True)
    raise typer.Exit(status)
