"""How large a box is: what its programs and files may use."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_BYTES: Final = re.compile(r"(\d{1,12})(?:([KMGT])(?:iB)?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Size:
    """The bounds of a box. Sizes in bytes."""

    memory: int
    """Held by programs and files together."""
    disk: int
    """Held by the files that the box writes; they lie in memory."""
    cpus: float
    pids: int


SIZES: Final[Mapping[str, Size]] = {
    "small": Size(memory=4 << 30, disk=2 << 30, cpus=2, pids=1024),
    "medium": Size(memory=8 << 30, disk=4 << 30, cpus=4, pids=2048),
    "large": Size(memory=16 << 30, disk=8 << 30, cpus=8, pids=4096),
}
"""By the names of the hosted service. The operator may set others."""

DEFAULT_SIZE: Final = "small"


class InvalidSizeError(ValueError):
    """Not a size. The message says what would be."""


def parse_sizes(settings: Iterable[str]) -> dict[str, Size]:
    """The sizes with the operator's changes: ``small:memory=1GiB,disk=512MiB,cpus=0.5,pids=256``.

    Raises:
        InvalidSizeError: one of them can't be read.
    """
    sizes = dict(SIZES)
    for setting in settings:
        name, colon, changes = setting.partition(":")
        if name not in sizes or not colon:
            raise InvalidSizeError(f"{setting!r}: write one of {', '.join(SIZES)}, a colon, and its bounds")
        for change in changes.split(","):
            sizes[name] = _changed(sizes[name], change, setting)
    return sizes


def _changed(size: Size, change: str, setting: str) -> Size:
    key, _, value = (part.strip() for part in change.partition("="))
    try:
        match key:
            case "memory":
                return replace(size, memory=_bytes(value))
            case "disk":
                return replace(size, disk=_bytes(value))
            case "cpus" if 0.01 <= float(value) <= 4096:
                return replace(size, cpus=float(value))
            case "pids" if 1 <= int(value) <= 4_000_000:
                return replace(size, pids=int(value))
    except ValueError:
        pass
    raise InvalidSizeError(
        f"{setting!r}: {change!r} is no bound; write memory=1GiB, disk=512MiB, cpus=0.5 or pids=256"
    )


def _bytes(text: str) -> int:
    match = _BYTES.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise ValueError(text)
    return int(match[1]) * _UNITS[match[2] or ""]
