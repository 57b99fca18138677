"""``box-policy tail``: what the gate decides, while it does."""

import os
import select
import stat
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from box_policy.audit.records import Event, Outcome, Protocol
from box_policy.cli.errors import USAGE, fail
from box_policy.cli.remote import READER_GONE, ControlOption, TokenFileOption, gate, the_boxes_are
from box_policy.cli.shown import json_line, listed, local_time, printable
from box_policy.policy.reasons import Reason

if TYPE_CHECKING:
    from box_policy.cli.client import Client, News, Told

_MAX_DURATION: Final = 1e12
"""Seconds; more are none of a connection's, and JSON has numbers that no float holds."""


def tail(
    box: Annotated[
        list[str] | None, typer.Option("--box", "-b", metavar="BOX", help="Of this box alone. Repeatable.")
    ] = None,
    denied: Annotated[bool, typer.Option("--denied", help="Only what was denied.")] = False,
    allowed: Annotated[bool, typer.Option("--allowed", help="Only what was allowed.")] = False,
    protocol: Annotated[
        list[Protocol] | None,
        typer.Option(metavar="PROTOCOL", help="Of this protocol alone: tcp, tls, http or dns. Repeatable."),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="For this name alone, or *.suffix. Repeatable."),
    ] = None,
    event: Annotated[
        list[Event] | None,
        typer.Option(
            metavar="EVENT", help="Of this kind alone: decision, end, policy or suppressed. Repeatable."
        ),
    ] = None,
    lines: Annotated[
        int,
        typer.Option(
            "--lines", "-n", metavar="N", min=0, max=10_000, help="How many earlier records to begin with."
        ),
    ] = 10,
    no_follow: Annotated[bool, typer.Option("--no-follow", help="End after the earlier records.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The records as JSON lines.")] = False,
    control: ControlOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Show what the gate decides, one line a record, until Ctrl-C.

    Decisions, ends of connections, new policies, and how many records were left out because they were too
    many. When the gate restarts, or the connection breaks, it goes on behind the last record. Exit status 1
    if the gate can't be reached at first, or says no.
    """
    if denied and allowed:
        fail("give --denied or --allowed, not both", USAGE)
    chosen = {
        "box": box,
        "protocol": protocol,
        "name": name,
        "event": event,
        "verdict": ["deny"] if denied else ["allow"] if allowed else None,
    }
    filters = [(key, str(value)) for key, values in chosen.items() for value in values or ()]
    end_with_reader()
    with gate(control, token_file) as client:
        if box:
            _say_who_is_missing(client, box, follow=not no_follow)
        news = client.kept(filters, backlog=lines) if no_follow else client.follow(filters, backlog=lines)
        for told in records(news):
            if told is None:
                continue
            if as_json:
                typer.echo(json_line(told.data, told.record))
            else:
                show(f"{local_time(told.record.get('time'))} {readable(told.record)}")


def records(news: "Iterator[News]") -> "Iterator[Told | None]":
    """The records of a stream, and None each time that it is open. The rest is said on standard error."""
    from box_policy.cli.client import Broken, Lost, Opened

    for item in news:
        if isinstance(item, Opened):
            if item.again:
                typer.echo("box-policy: connected again", err=True)
            yield None
        elif isinstance(item, Broken):
            typer.echo(f"box-policy: {item.why}; trying again", err=True)
        elif isinstance(item, Lost):
            if item.records is None:
                lost = "the gate was restarted; records may be missing"
            else:
                # Whether they would have passed the filters, nobody can tell any more.
                lost = f"{item.records} records have gone by unseen: the gate no longer keeps them"
            typer.echo(f"box-policy: {lost}", err=True)
        else:
            yield item


def show(line: str) -> None:
    """Print a line, in colour on a terminal whose user doesn't mind."""
    typer.echo(line, color=False if os.environ.get("NO_COLOR") else None)


def readable(record: Mapping[str, Any]) -> str:
    """A record as one line for people."""
    said = {key: printable(value) for key, value in record.items()}
    box = said.get("box", "")
    if said.get("event") == Event.POLICY:
        return _policy_line(said, box)
    if said.get("event") == Event.SUPPRESSED:
        return f"({said.get('records', '?')} records of {box} left out: too many)"
    cut = said.get("event") == Event.END and said.get("reason") == Reason.POLICY_CHANGED
    if said.get("event") == Event.END:
        verdict = typer.style("cut  ", fg="red") if cut else typer.style("end  ", dim=True)
    elif said.get("verdict") == "allow":
        verdict = typer.style("allow", fg="green")
    else:
        verdict = typer.style("deny ", fg="red")
    parts = [verdict, box, said.get("protocol", "?"), _target(said)]
    dialled = said.get("dialled")
    if dialled and dialled != said.get("claimed_address"):
        parts.append(f"-> {dialled}")
    rule, reason = said.get("rule"), said.get("reason", "?")
    parts.append(f"({rule or reason})")
    if rule and (said.get("event") == Event.END or said.get("verdict") != "allow"):
        parts.append(reason)
    if record.get("mismatch") is True:
        parts.append(f"claimed {said.get('claimed_address', '?')}")
    parts += _traffic(record)
    return " ".join(parts)


def _target(said: Mapping[str, str]) -> str:
    target = said.get("name") or said.get("claimed_address") or "?"
    port = said.get("claimed_port")
    if port is None:
        return target
    return f"[{target}]:{port}" if ":" in target else f"{target}:{port}"


def _policy_line(said: Mapping[str, str], box: str) -> str:
    generation, outcome = said.get("generation", "?"), said.get("outcome", "?")
    detail = f": {said['detail']}" if "detail" in said else ""
    if outcome == Outcome.ACCEPTED:
        return f"policy {box} generation {generation} from {said.get('source', '?')}{detail}"
    if outcome == Outcome.REMOVED:
        return f"policy {box} removed{detail}"
    colour = typer.style(outcome, fg="red")
    # What is wrong with a whole directory is no box's.
    return (
        f"policy {box} {colour}, generation {generation} stays{detail}" if box else f"policy {colour}{detail}"
    )


def _traffic(record: Mapping[str, Any]) -> list[str]:
    """What went through, of a connection that has ended."""
    shown = []
    for key, word in (("bytes_up", "up"), ("bytes_down", "down")):
        if type(count := record.get(key)) is int and 0 <= count < 1 << 63:
            shown.append(f"{_amount(count)} {word}")
    if isinstance(seconds := record.get("duration"), int | float) and 0 <= seconds < _MAX_DURATION:
        shown.append(f"{seconds:.3g} s")
    return [", ".join(shown)] if shown else []


def _amount(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _say_who_is_missing(client: "Client", wanted: list[str], *, follow: bool) -> None:
    """A box may come later, or have gone and left records. Whoever has mistyped its name should not wait for
    the one, nor take it for a box without records."""
    known = [box["id"] for box in client.boxes()]
    if missing := [box for box in wanted if box not in known]:
        there_is = f"there is no box {listed(missing)}{' yet' if follow else ''}"
        typer.echo(f"box-policy: {there_is}: {the_boxes_are(known)}", err=True)


def end_with_reader() -> None:
    """End this process once nobody reads its output any more, also while it has nothing to write.

    To let SIGPIPE do it would not do: it would end the process just as quietly when a gate closes its
    connection, and only with the next record.
    """
    if not stat.S_ISFIFO(os.fstat(1).st_mode):
        return

    def watch() -> None:
        poll = select.poll()
        poll.register(1, 0)  # errors are told of in any case
        poll.poll()
        os._exit(READER_GONE)

    threading.Thread(target=watch, name="reader of the output", daemon=True).start()
