"""``box-policy status``: what the gate enforces, and how it is."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from box_policy.cli.errors import FAILURE
from box_policy.cli.remote import ControlOption, TokenFileOption, gate
from box_policy.cli.shown import local_time, printable

if TYPE_CHECKING:
    from box_policy.cli.client import Client


def status(
    as_json: Annotated[bool, typer.Option("--json", help="The gate's answer as JSON.")] = False,
    ready: Annotated[
        bool, typer.Option("--ready", help="Print nothing; exit with 0 if the gate is ready, else with 1.")
    ] = False,
    control: ControlOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Show what the gate enforces, and how it is.

    Its version; its boxes, with the policy of each; the files that policies come from, and what is wrong with
    those that were refused; records that could not be written.

    Exit status 1 if the gate can't be reached, or says no.
    """
    with gate(control, token_file, quiet=ready) as client:
        if ready:
            raise typer.Exit(0 if client.get("/readyz")[0].get("status") == "ready" else FAILURE)
        answer, _ = client.get("/v1/status")
        if as_json:
            typer.echo(json.dumps(answer, indent=2))
        else:
            for line in _lines(client, answer):
                typer.echo(line)


def _lines(client: "Client", answer: Mapping[str, Any]) -> list[str]:
    boxes, sources = client.rows(answer, "boxes"), client.rows(answer, "sources")
    state = "ready" if answer.get("ready") is True else "starting"
    lines = [
        f"box-policy {_said(answer, 'version')}, {state}, up {_span(answer.get('uptime'))} "
        f"since {local_time(answer.get('started'))}",
        "",
        *_table(
            [("box", "policy", "generation", "from", "since", "connections", "pending")],
            [
                (
                    _said(box, "id"),
                    _said(box, "kind"),
                    _said(box, "generation"),
                    _said(box, "source"),
                    local_time(box.get("since")),
                    _said(box, "connections"),
                    _said(box, "pending"),
                )
                for box in boxes
            ],
        ),
    ]
    if sources:
        lines += ["", *_table([("file", "state", "box", "since")], [_source(source) for source in sources])]
    for source in sources:
        if source.get("error"):
            lines += ["", f"{_said(source, 'path')} is {_said(source, 'state')}:"]
            lines += [f"  {printable(line)}" for line in str(source["error"]).splitlines()]
    lines += ["", f"records lost: {_said(answer, 'records_lost')}, streams: {_said(answer, 'streams')}"]
    return lines


def _source(source: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        _said(source, "path"),
        _said(source, "state"),
        _said(source, "box"),
        local_time(source.get("since")),
    )


def _said(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    return "-" if value is None else printable(value)


def _table(headings: Sequence[tuple[str, ...]], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns of equal width. Not rich's: that would cut what doesn't fit, and colour what it likes."""
    widths = [max(map(len, column)) for column in zip(*headings, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (*headings, *rows)
    ]


def _span(seconds: object) -> str:
    """A time in its two largest units."""
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        return "?"
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"
