"""Which policy files there are, and which box each one is for."""

import itertools
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from box_policy.control.files.agenda import Due
from box_policy.control.files.trusted_path import Trail
from box_policy.control.files.watched_file import Bad, Finding, Gone, WatchedFile
from box_policy.control.policy_file import examine, shown
from box_policy.gate.mode import BOX_ID, DEFAULT_BOX

MAX_FILES: Final = 10_000
"""Most policy files in one directory."""

DEFAULT: Final = DEFAULT_BOX
"""The file of this name serves the boxes without a file of their own."""

_SUFFIXES: Final = (".yaml", ".yml", ".json")


def name_of(entry: str) -> str | None:
    """A policy file's name without its suffix. None for what is none: a hidden file, an editor's leftover."""
    stem, dot, suffix = entry.rpartition(".")
    return stem if dot + suffix in _SUFFIXES and not entry.startswith(".") else None


@dataclass(frozen=True, slots=True)
class Listing:
    """What is new about the policy files in a directory."""

    root: str
    """The directory by a path without links."""
    identity: tuple[int, int]
    """Its device and inode."""
    moved: Mapping[str, tuple[Path, ...]]
    """By name without suffix, the files that are new, gone or elsewhere, and where they are now."""
    complaint: str | None


def list_files(directory: Path, known: "PolicyFiles") -> Listing | Gone | Bad:
    """What is new in a directory. To be called in a thread."""
    try:
        root = os.path.realpath(directory, strict=True)
        status = Path(root).stat()
        with os.scandir(root) as entries:
            files = _policies(directory, entries)
    except (FileNotFoundError, NotADirectoryError):
        return Gone()
    except OSError as error:
        return Bad(f"{shown(directory)}: {error.strerror or error}")
    return Listing(root, (status.st_dev, status.st_ino), *known.compare(files))


def _policies(directory: Path, entries: Iterable[os.DirEntry[str]]) -> dict[str, tuple[Path, ...]]:
    named = ((name, entry) for entry in entries if (name := name_of(entry.name)) is not None)
    files = ((name, entry) for name, entry in named if not entry.is_dir(follow_symlinks=False))
    found: dict[str, list[Path]] = {}
    for name, entry in itertools.islice(files, MAX_FILES + 1):
        found.setdefault(name, []).append(directory / entry.name)
    return {name: tuple(sorted(paths)) for name, paths in found.items()}


@dataclass(frozen=True, slots=True)
class Found:
    """What is new about a file."""

    name: str
    finding: Finding
    trail: Trail


@dataclass(slots=True)
class Batch:
    """What came of looking at some files."""

    found: list[Found] = field(default_factory=list)
    looked: int = 0
    """How many were looked at."""
    idle: float = 0.0
    """Seconds spent on those that are as they were."""


def examine_all(files: "PolicyFiles", names: Sequence[str], due: Due, *, seconds: float) -> Batch:
    """Look at files, one after the other, until something is new and time is up.

    To be called in a thread, while nobody else changes the files.
    """
    batch = Batch()
    now = time.monotonic()
    until = now + seconds
    for name in names:
        file = files[name]
        file.notice(due.event(name), now)
        trail = Trail()
        finding = files.complaint(name) or examine(
            file.last_path, known=file.known, sample=file.sample, trail=trail
        )
        began, now = now, time.monotonic()
        batch.looked += 1
        if file.is_news(finding) or trail != file.trail:
            batch.found.append(Found(name, finding, trail))
        else:
            file.noticed = None
            batch.idle += now - began
        if batch.found and now >= until:
            break
    return batch


class PolicyFiles:
    """The files of one source, and who uses them."""

    def __init__(self, boxes: Collection[str], *, every: Path | None = None) -> None:
        """
        Args:
            boxes: who must have a policy.
            every: the one file that is every box's; without it there is a file a box.
        """
        self._boxes = frozenset(boxes)
        self._files: dict[str, WatchedFile] = {}
        if every is not None:
            self._files[DEFAULT] = WatchedFile((every,), None)

    def __iter__(self) -> Iterator[WatchedFile]:
        return iter([self._files[name] for name in sorted(self._files)])

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> WatchedFile:
        return self._files[name]

    def names(self) -> list[str]:
        return list(self._files)

    def trails(self) -> list[Trail]:
        return [file.trail for file in self._files.values()]

    def forget(self, name: str) -> None:
        del self._files[name]

    def is_at(self, name: str, entry: str) -> bool:
        """Whether a file is known to be in this entry of the directory, and in no other."""
        return name in self._files and [path.name for path in self._files[name].paths] == [entry]

    def compare(
        self, found: Mapping[str, tuple[Path, ...]]
    ) -> tuple[dict[str, tuple[Path, ...]], str | None]:
        """What is new, gone or elsewhere of what a directory holds now, and a complaint. Changes nothing.

        Of more than MAX_FILES files those count that are known; of the others as many as there is room for.
        """
        moved = {
            name: found.get(name, ())
            for name, file in self._files.items()
            if file.paths != found.get(name, ())
        }
        new = sorted(found.keys() - self._files.keys())
        room = max(MAX_FILES - len(self._files), 0)
        moved |= {name: found[name] for name in new[:room]}
        too_many = len(new) > room or sum(map(len, found.values())) > MAX_FILES
        return moved, f"more than {MAX_FILES:,} policy files" if too_many else None

    def move(self, name: str, paths: tuple[Path, ...]) -> None:
        """A file is somewhere else, new or gone."""
        if name in self._files:
            self._files[name].move(paths)
        else:
            self._files[name] = WatchedFile(paths, self._box(name))

    def _box(self, name: str) -> str | None:
        return name if name != DEFAULT and re.fullmatch(BOX_ID, name) else None

    def complaint(self, name: str) -> Gone | Bad | None:
        """What can be said of a file by its name alone."""
        paths = self._files[name].paths
        if not paths:
            return Gone()
        if name != DEFAULT and self._box(name) is None:
            return Bad(
                f"{shown(paths[0])}: no box can have this name: "
                "it has letters, digits, '.', '_' and '-', 64 at most, and begins with a letter or a digit"
            )
        if len(paths) > 1:
            others = ", ".join(shown(Path(path.name)) for path in paths[1:])
            return Bad(f"{shown(paths[0])}: there is also {others}; keep one")
        return None

    def boxes_of(self, name: str) -> list[str]:
        """The boxes that a file is for; for the default one, those without a file that has ever counted."""
        if name == DEFAULT:
            return sorted(box for box in self._boxes if self.file_of(box) is self._files[name])
        box = self._files[name].box
        return [] if box is None else [box]

    def file_of(self, box: str) -> WatchedFile | None:
        """The file whose policy is a box's."""
        own = self._files.get(box) if box != DEFAULT else None
        if own is not None and own.policy is not None:
            return own
        return self._files.get(DEFAULT)

    def served(self) -> list[str]:
        """Every box that must have a policy, or has a file."""
        return sorted(self._boxes.union(file.box for file in self._files.values() if file.box is not None))
