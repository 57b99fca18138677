"""``box-policy policy``: read, change and watch the policy in force in a running gate.

The box is an option of every command, never an argument: a file may be called what a box is called, and
the place of a word should not decide which of the two it names.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
import yaml

from box_policy.audit.records import Outcome
from box_policy.cli.errors import USAGE, fail
from box_policy.cli.policy_options import (
    AllowAllOption,
    AllowCidrOption,
    AllowOption,
    DenyCidrOption,
    chosen_policy,
)
from box_policy.cli.remote import BoxOption, ControlOption, TokenFileOption, gate, the_box
from box_policy.cli.shown import json_line, local_time, printable
from box_policy.cli.tail import end_with_reader, readable, records

if TYPE_CHECKING:
    from box_policy.cli.client import Client

_TRIES: Final = 20
"""How often a policy is read until it and what is said of it belong together."""

app = typer.Typer(
    help="Read, change and watch the policy in force in a running gate.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("get")
def get(
    box: BoxOption = None,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print YAML.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the default.")] = False,
    generation: Annotated[bool, typer.Option("--generation", help="Print its generation alone.")] = False,
    control: ControlOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Print the policy in force.

    Exit status 1 if the gate can't be reached, or says no; 2 if there is no such box.
    """
    if as_yaml + as_json + generation > 1:
        fail("give one of --yaml, --json, --generation", USAGE)
    with gate(control, token_file) as client:
        policy, number = client.policy(the_box(client, box))
        if generation:
            typer.echo(number)
        elif as_yaml:
            typer.echo(_yaml(policy), nl=False)
        else:
            typer.echo(json.dumps(policy, indent=2))


@app.command("set")
def set_(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A policy, YAML or JSON; - for standard input.")
    ] = None,
    box: BoxOption = None,
    allow: AllowOption = None,
    allow_cidr: AllowCidrOption = None,
    deny_cidr: DenyCidrOption = None,
    allow_all: AllowAllOption = False,
    deny_all: Annotated[bool, typer.Option("--deny-all", help="Allow nothing.")] = False,
    if_match: Annotated[
        int | None,
        typer.Option(
            "--if-match", metavar="N", min=1, help="Change nothing unless generation N is in force."
        ),
    ] = None,
    control: ControlOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Put a policy in force, from FILE or from options.

    When it returns, the policy is in force, and connections that it no longer allows have been cut.

    Exit status 1 if the gate can't be reached, or says no, and if --if-match names another generation; 2 if
    the policy is wrong (each error with its line), or there is no such box.
    """
    policy = chosen_policy(file, allow, allow_cidr, deny_cidr, allow_all, deny_all, file_option="FILE")
    if policy is None:
        fail(
            "no policy: give FILE, --allow-all, --deny-all, or a list of --allow, --allow-cidr, --deny-cidr",
            USAGE,
        )
    from box_policy.cli.client import RemoteError

    with gate(control, token_file) as client:
        name = the_box(client, box)
        try:
            generation = client.put_policy(name, policy.canonical(), if_match=if_match)
        except RemoteError as error:
            if error.code != "generation_stale":
                raise
            fail(f"--if-match {if_match}: {error}; nothing has changed")
        typer.echo(f"generation {generation} is in force for {printable(name)}")


@app.command("watch")
def watch(
    box: BoxOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    control: ControlOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Print the policy each time it changes, until Ctrl-C.

    The one in force comes first. Changes that were refused are shown, too. When the gate restarts, or the
    connection breaks, it goes on.

    Exit status 1 if the gate can't be reached at first, or says no; 2 if there is no such box.
    """
    from box_policy.cli.client import RemoteError

    end_with_reader()
    with gate(control, token_file) as client:
        name = the_box(client, box)
        shown: dict[str, Any] | None = None
        # The stream is open before the policy is read, so no change can fall between the two.
        for told in records(client.follow([("event", "policy")])):
            if told is not None and told.record.get("box") not in (name, ""):
                continue  # another box's; what is wrong with a whole directory is everybody's
            if told is not None and told.record.get("outcome") != Outcome.ACCEPTED:
                if as_json:
                    typer.echo(json_line(told.data, told.record))
                else:
                    typer.echo(f"# {local_time(told.record.get('time'))} {readable(told.record)}\n")
                continue
            try:
                now = _in_force(client, name)
            except RemoteError as error:
                if not error.transient:
                    raise
                if error.code:
                    typer.echo(f"box-policy: the policy can't be read: {error}", err=True)
                # Else the gate has gone: the stream breaks as well, and this is tried again once it is open.
                continue
            if now is None:
                typer.echo(f"box-policy: the gate has no box {printable(name)} now", err=True)
            elif now != shown:
                typer.echo(json.dumps(now) if as_json else _with_heading(now))
            shown = now


def _in_force(client: "Client", box: str) -> dict[str, Any] | None:
    """A box's policy with the fields of a policy's record; None if there is no such box any more."""
    from box_policy.cli.client import RemoteError

    for _ in range(_TRIES):
        entry = next((entry for entry in client.boxes() if entry.get("id") == box), None)
        if entry is None:
            return None
        try:
            policy, generation = client.policy(box)
        except RemoteError as error:
            if error.code == "box_unknown":
                return None
            raise
        if entry.get("generation") == generation:
            return {
                "time": entry.get("since"),
                "event": "policy",
                "box": box,
                "generation": generation,
                "outcome": Outcome.ACCEPTED,
                "source": entry.get("source"),
                "policy": policy,
            }
    raise RemoteError(f"the policy of {box} changes faster than it can be read", transient=True)


def _with_heading(now: dict[str, Any]) -> str:
    heading = (
        f"# {local_time(now['time'])} {printable(now['box'])} generation {now['generation']} "
        f"from {printable(now['source'])}"
    )
    return f"{heading}\n{_yaml(now['policy'])}"


def _yaml(policy: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(policy, sort_keys=False)
    return text
