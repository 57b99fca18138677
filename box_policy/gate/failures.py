"""What fails on behalf of one connection ends that connection, and nothing else."""

import logging
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)


class Fallible(Protocol):
    """Something that may fail at any moment."""

    def failed(self, error: Exception) -> None:
        """What was done on its behalf has raised: end it, with RST and a record."""


def attempt[*Given](target: Fallible, action: Callable[[*Given], object], *given: *Given) -> None:
    """Do something on a target's behalf. Whatever that raises ends the target, and is raised no further."""
    try:
        action(*given)
    except Exception as error:
        log.exception("a connection failed in the gate and is closed")
        try:
            target.failed(error)
        except Exception:
            log.exception("a connection that failed in the gate could not be closed")


def every(*steps: Callable[[], object]) -> None:
    """Take each step, whatever becomes of the others. For letting go: one thing that can't be let go of must
    not keep the rest."""
    for step in steps:
        try:
            step()
        except Exception:
            log.exception("something that a connection held could not be let go of in order")
