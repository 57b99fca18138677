"""What an examination has to say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

type State = Literal["ok", "missing", "limited"]
"""``limited``: what needs it works, with less than it could."""
type Mode = Literal["namespaces", "docker", "sidecar", "addon"]


@dataclass(frozen=True, slots=True)
class Remedy:
    """How to mend something."""

    text: str
    commands: tuple[str, ...] = ()
    """Lines for a shell or a file, to be taken as they are."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check came to."""

    name: str
    state: State
    found: str
    remedies: tuple[Remedy, ...] = ()


@dataclass(frozen=True, slots=True)
class Ability:
    """Whether boxes, or gates, of one kind can be had here."""

    mode: Mode
    title: str
    works: bool
    reason: str | None = None
    """Why not."""


@dataclass(frozen=True, slots=True)
class Examination:
    """All findings, and what they come to."""

    findings: Sequence[Finding]
    abilities: Sequence[Ability]
