"""A policy in a file."""

import logging
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Final

from box_policy.audit.records import MAX_DETAIL
from box_policy.control.files.trusted_file import Known, Missing, Refused, Sample, Unsettled, Whole, look
from box_policy.control.files.trusted_path import Trail
from box_policy.control.files.watched_file import Bad, BeingWritten, Finding, Gone, Good, Same
from box_policy.policy.document import MAX_BYTES, DocumentError, parse_document
from box_policy.policy.model import NetworkPolicy

log = logging.getLogger(__name__)

STANDARD_INPUT: Final = Path("-")

_MAX_LINES: Final = 20
"""Errors that are shown of a watched file."""


class PolicyFileError(Exception):
    """The file can't be read, or holds no valid policy. One line an error, each with its place."""


def read_policy(path: Path) -> NetworkPolicy:
    """The policy in a YAML or JSON file; ``-`` is standard input. Raises PolicyFileError."""
    name = "<stdin>" if path == STANDARD_INPUT else str(path)
    try:
        return parse_document(_read(path), name=name)
    except OSError as error:
        raise PolicyFileError(f"{name}: {error.strerror or error}") from None
    except DocumentError as error:
        raise PolicyFileError(str(error)) from None


def _read(path: Path) -> bytes:
    # One byte over the bound is enough for the parser to refuse, however much there is.
    if path == STANDARD_INPUT:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with path.open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def examine(path: Path, *, known: Collection[bytes], sample: Sample | None, trail: Trail) -> Finding:
    """What a watched file holds now. The arguments are those of :func:`trusted_file.look`."""
    name = shown(path)
    match look(path, max_bytes=MAX_BYTES, known=known, sample=sample, trail=trail):
        case Known(digest=digest):
            return Same(digest)
        case Unsettled(sample=sample):
            return BeingWritten(sample)
        case Missing():
            return Gone()
        case Refused(why=why):
            return Bad(f"{name}: {_printable(why)}")
        case Whole(data=data, digest=digest):
            try:
                return Good(digest, parse_document(data, name=name))
            except DocumentError as error:
                return Bad(shortened(str(error)), digest)
            except Exception as error:
                # Nothing is known to get here; but what can't be read must not end the watch.
                log.exception("%s can't be read", name)
                return Bad(f"{name}: it can't be read ({type(error).__name__})", digest)


def shown(path: Path) -> str:
    """A path as records and messages show it: UTF-8, in one line, with nothing a terminal would obey."""
    return _printable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def _printable(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def shortened(errors: str) -> str:
    """The first of many lines, as many as a record has room for, and how many more there are."""
    lines = errors.split("\n")
    length, kept = 0, 0
    while kept < min(len(lines), _MAX_LINES) and (length := length + len(lines[kept]) + 1) < MAX_DETAIL - 40:
        kept += 1
    kept = max(kept, 1)
    more = len(lines) - kept
    return "\n".join(lines[:kept] + ([f"... and {more:,} more"] if more else []))
