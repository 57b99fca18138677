"""``box-policy gc``: removes what boxes have left whose launchers were killed."""

import asyncio
import os
from typing import Annotated

import typer

from box_policy.cli.errors import FAILURE, fail
from box_policy.cli.left_groups import left_groups


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
) -> None:
    """Remove what is left of boxes whose launchers were killed: containers, images, control groups.

    What belongs to a launcher that lives is left alone, and so are snapshots that are kept in a directory.
    The exit status is 1 if something could not be removed.
    """
    failed = _remove_groups(dry_run)
    failed |= asyncio.run(_remove_containers(dry_run))
    if failed:
        raise typer.Exit(FAILURE)


def _remove_groups(dry_run: bool) -> bool:
    """Whether it failed."""
    try:
        groups = left_groups()
    except OSError as error:
        fail(f"control groups can't be looked for: {error.strerror}", FAILURE)
    failed = False
    for group in groups:
        try:
            if not dry_run:
                group.rmdir()
        except FileNotFoundError:
            continue  # somebody else was faster
        except OSError as error:
            typer.echo(f"box-policy: control group {group}: {error.strerror}", err=True)
            failed = True
            continue
        _say(f"control group {group}", dry_run)
    return failed


async def _remove_containers(dry_run: bool) -> bool:
    """Whether it failed."""
    from box_policy.sandbox.docker import reap
    from box_policy.sandbox.launcher import SandboxError

    try:
        for found in await reap(dry_run=dry_run):
            _say(found, dry_run)
    except SandboxError as error:
        typer.echo(f"box-policy: {error}", err=True)
        # Without Docker there is nothing of it to be removed; but one that was named should be there.
        return bool(os.environ.get("DOCKER_HOST"))
    return False


def _say(what: str, dry_run: bool) -> None:
    typer.echo(f"{'would be removed' if dry_run else 'removed'}: {what}")
