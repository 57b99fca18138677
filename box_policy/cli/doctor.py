"""``box-policy doctor``: what this machine can run, what is missing, and how to get it."""

import json
import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

import box_policy
from box_policy.cli.errors import FAILURE, fail
from box_policy.cli.shown import printable

if TYPE_CHECKING:
    from box_policy.sandbox.doctor.findings import Examination, Finding, Remedy, State

_COLOURS: Final = {"ok": typer.colors.GREEN, "limited": typer.colors.YELLOW, "missing": typer.colors.RED}
_GAP: Final = "  "
_LEAST_WIDTH: Final = 24
"""Of the last column, however narrow the terminal."""
_MOST_WIDTH: Final = 120
_REASON_WIDTH: Final = 100
_STATE_WIDTH: Final = max(map(len, _COLOURS))


class Backend(StrEnum):
    """What can run boxes."""

    NAMESPACES = "namespaces"
    DOCKER = "docker"


def doctor(
    backend: Annotated[
        Backend | None, typer.Option(help="Check what boxes of one kind need, and nothing else.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
) -> None:
    """Show what this machine can run, what is missing, and how to get it.

    Everything is tried, in processes that are thrown away; nothing on this machine is changed, and nothing is
    sent.

    Exit status 0 if boxes can be run, by one backend at least or by the one asked for; else 1.
    """
    from box_policy.sandbox.doctor.examination import BACKENDS, examine

    examination = examine(os.environ, None if backend is None else backend.value)
    works = any(ability.works for ability in examination.abilities if ability.mode in BACKENDS)
    if as_json:
        report = {"version": box_policy.__version__, "ok": works, **asdict(examination)}
        lines: Iterable[str] = (json.dumps(report, indent=2),)
    else:
        lines = _lines(examination, min(shutil.get_terminal_size().columns, _MOST_WIDTH))
    try:
        for line in lines:
            typer.echo(line)
    except BrokenPipeError:
        raise  # whoever read it has seen enough
    except OSError as error:
        fail(f"the findings can't be written: {error.strerror}")
    raise typer.Exit(0 if works else FAILURE)


def _lines(examination: "Examination", width: int) -> Iterator[str]:
    names = max(len("check"), *(len(finding.name) for finding in examination.findings))
    yield _GAP.join(("check".ljust(names), "state".ljust(_STATE_WIDTH), "found"))
    said: set[Remedy] = set()
    for finding in examination.findings:
        yield from _row(finding, names, width)
        yield from _remedies([remedy for remedy in finding.remedies if remedy not in said], width)
        said.update(finding.remedies)
    yield ""
    for ability in examination.abilities:
        if ability.works:
            yield f"{ability.title}: {_coloured('yes', 'ok')}"
        else:
            why = textwrap.shorten(printable(ability.reason), _REASON_WIDTH, placeholder=" ...")
            reason = _wrapped(f"{ability.title}: no, {why}", width, _GAP)
            yield from (line.replace(": no,", f": {_coloured('no', 'missing')},", 1) for line in reason)


def _row(finding: "Finding", names: int, width: int) -> Iterator[str]:
    before = len(_GAP) * 2 + names + _STATE_WIDTH
    first, *others = _wrapped(printable(finding.found), max(width - before, _LEAST_WIDTH), "")
    state = _coloured(finding.state, finding.state) + " " * (_STATE_WIDTH - len(finding.state))
    yield _GAP.join((finding.name.ljust(names), state, first))
    yield from (" " * before + line for line in others)


def _remedies(remedies: "Iterable[Remedy]", width: int) -> Iterator[str]:
    for remedy in remedies:
        yield from (
            f"{_GAP}{line}" for line in _wrapped(f"> {printable(remedy.text)}", width - len(_GAP), _GAP)
        )
        # As they are, however wide: they are there to be copied.
        yield from (f"{_GAP * 3}{printable(command)}" for command in remedy.commands)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text, max(width, _LEAST_WIDTH), subsequent_indent=indent, break_on_hyphens=False
    ) or [""]


def _coloured(text: str, state: "State") -> str:
    """In colour, for a terminal whose user hasn't asked for none (https://no-color.org)."""
    # What isn't a terminal gets no colours by typer.echo().
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return typer.style(text, fg=_COLOURS[state])
