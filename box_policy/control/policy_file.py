"""A policy in a file."""

import sys
from pathlib import Path
from typing import Final

from box_policy.policy.document import MAX_BYTES, DocumentError, parse_document
from box_policy.policy.model import NetworkPolicy

STANDARD_INPUT: Final = Path("-")


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
