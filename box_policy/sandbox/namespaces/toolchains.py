"""Find the programming tools of a user's that live in home directories, so that a box can be shown them.

A user's ``python``, ``pip`` or ``node`` is often a virtual environment or an installation of a version
manager, below a home directory that no box may see. What can be shown is recognised by what such an
installation is made of, never by its name alone: a home, ``~/.local``, ``~/bin`` or a directory that
holds credentials is not shown, whatever else is in it.
"""

# Paths are strings here, as system calls take them.
# ruff: noqa: PTH112, PTH113, PTH115, PTH117, PTH118, PTH119, PTH120, PTH208

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from box_policy.sandbox.namespaces.host_files import SYSTEM_DIRECTORIES

SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")

# Places that are a box's own.
_NEVER_BELOW = ("/dev", "/etc", "/proc", "/run", "/sys", "/workspace")
# Below a home: where programs of many origins, settings and secrets lie side by side.
_NEVER_IN_HOME = frozenset(
    [
        ".aws",
        ".cache",
        ".cargo",
        ".config",
        ".docker",
        ".gnupg",
        ".kube",
        ".local",
        ".local/share",
        ".local/share/uv",
        ".local/share/uv/tools",
        ".npm",
        ".npm-global",
        ".ssh",
        "bin",
        "go",
    ]
)
_CREDENTIAL_NAMES = frozenset(
    [
        ".aws",
        ".azure",
        ".config",
        ".docker",
        ".env",
        ".git-credentials",
        ".gnupg",
        ".kube",
        ".netrc",
        ".pypirc",
        ".ssh",
        "credentials",
        "credentials.json",
        "id_ed25519",
        "id_rsa",
    ]
)
_STANDARD_LIBRARY = re.compile(r"python3\.\d+t?")
_PYENV_PARTS = ("bin", "libexec", "pyenv.d", "shims", "version")
_MAX_LINKS = 16


class FileSystem(Protocol):
    """What is asked of the host's file system. Nothing raises: what can't be read is not there."""

    def is_directory(self, path: str) -> bool: ...
    def is_file(self, path: str) -> bool: ...
    def names(self, directory: str) -> list[str]: ...
    def read(self, path: str) -> str: ...
    def link_target(self, path: str) -> str | None: ...
    def resolve(self, path: str) -> str: ...


class HostFileSystem:
    """The file system of this machine."""

    def is_directory(self, path: str) -> bool:
        return os.path.isdir(path)

    def is_file(self, path: str) -> bool:
        return os.path.isfile(path)

    def names(self, directory: str) -> list[str]:
        try:
            return sorted(os.listdir(directory))
        except OSError:
            return []

    def read(self, path: str) -> str:
        try:
            return Path(path).read_text(errors="replace")
        except OSError:
            return ""

    def link_target(self, path: str) -> str | None:
        try:
            return os.readlink(path)
        except OSError:
            return None

    def resolve(self, path: str) -> str:
        return os.path.realpath(path)


@dataclass(frozen=True, slots=True)
class Toolchains:
    """What to show in a box, for ``BoxSpec.read_only``, and the PATH to go with it."""

    read_only: tuple[Path, ...]
    path: str
    left_out: tuple[str, ...]
    """Entries of the user's PATH whose programs the box does not have."""


def find_toolchains(environment: Mapping[str, str], files: FileSystem | None = None) -> Toolchains:
    """The tools on the user's PATH. ``environment`` gives PATH and HOME."""
    finder = _Finder(environment.get("HOME", ""), HostFileSystem() if files is None else files)
    path: list[str] = []
    left_out: list[str] = []
    shown: dict[str, None] = {}
    for entry in environment.get("PATH", "").split(":"):
        directory = os.path.normpath(entry)
        if not os.path.isabs(entry) or directory in path:
            continue
        if not _is_system(directory):
            found = finder.prefixes(directory)
            if not found:
                left_out.append(entry)
                continue
            shown |= dict.fromkeys(found)
        path.append(directory)
    path.extend(directory for directory in SYSTEM_PATH if directory not in path)
    return Toolchains(tuple(Path(prefix) for prefix in shown), ":".join(path), tuple(left_out))


def _is_below(path: str, directories: tuple[str, ...]) -> bool:
    return path.startswith(tuple(directory + "/" for directory in directories))


def _is_system(path: str) -> bool:
    return path in SYSTEM_DIRECTORIES or _is_below(path, SYSTEM_DIRECTORIES)


class _Finder:
    def __init__(self, home: str, files: FileSystem) -> None:
        self._files = files
        self._home = os.path.normpath(home) if os.path.isabs(home) else ""
        self._real_home = files.resolve(self._home) if self._home else ""

    def prefixes(self, directory: str) -> list[str]:
        """What must be shown for the programs in ``directory`` to run; empty if they can't be shown."""
        parent = os.path.dirname(directory)
        if os.path.basename(directory) == "shims":
            return self._pyenv(parent)
        if os.path.basename(directory) != "bin" or not self._may_show(parent):
            return []
        if self._files.is_file(f"{parent}/libexec/pyenv"):
            return self._pyenv(parent)
        if self._files.is_file(f"{parent}/pyvenv.cfg"):
            return [parent, *self._base_of(parent)]
        if (
            self._has_standard_library(parent)
            or self._files.is_directory(f"{parent}/conda-meta")
            or (
                self._files.is_file(f"{directory}/node")
                and self._files.is_directory(f"{parent}/lib/node_modules")
            )
        ):
            return [parent, *self._real(parent)]
        return []

    def _pyenv(self, root: str) -> list[str]:
        if not self._files.is_directory(f"{root}/versions") or not self._files.is_file(
            f"{root}/libexec/pyenv"
        ):
            return []
        versions = (f"{root}/versions/{name}" for name in self._files.names(f"{root}/versions"))
        parts = [f"{root}/{part}" for part in _PYENV_PARTS]
        present = [part for part in parts if self._files.is_directory(part) or self._files.is_file(part)]
        return present + [
            shown
            for version in versions
            if self._has_standard_library(version) or self._files.is_file(f"{version}/pyvenv.cfg")
            for shown in (version, *self._base_of(version))
            if self._may_show(version)
        ]

    def _base_of(self, prefix: str) -> list[str]:
        """The installations that a virtual environment's interpreter is a link to, if it is one."""
        shown = self._real(prefix)
        candidates = list(self._interpreters(f"{prefix}/bin/python"))
        for line in self._files.read(f"{prefix}/pyvenv.cfg").splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "home" and os.path.isabs(value.strip()):
                candidates.append(os.path.normpath(value.strip()) + "/python")
        for interpreter in candidates:
            base = os.path.dirname(os.path.dirname(interpreter))
            for installation in (base, self._files.resolve(base)):
                if (
                    installation != prefix
                    and not _is_system(installation)
                    and self._has_standard_library(installation)
                    and self._may_show(installation)
                ):
                    shown.append(installation)
        return list(dict.fromkeys(shown))

    def _interpreters(self, path: str) -> Iterator[str]:
        """Where the links of ``path`` lead, step by step."""
        for _ in range(_MAX_LINKS):
            target = self._files.link_target(path)
            if target is None:
                return
            path = os.path.normpath(os.path.join(os.path.dirname(path), target))
            yield path

    def _real(self, prefix: str) -> list[str]:
        resolved = self._files.resolve(prefix)
        return [resolved] if resolved != prefix and self._may_show(resolved) else []

    def _has_standard_library(self, prefix: str) -> bool:
        # ~/.local has lib/python3.x as well, for packages; only an installation has the library itself.
        return any(
            _STANDARD_LIBRARY.fullmatch(name) and self._files.is_file(f"{prefix}/lib/{name}/os.py")
            for name in self._files.names(f"{prefix}/lib")
        )

    def _homes(self, prefix: str) -> Iterator[str]:
        yield from {self._home, self._real_home, "/root"} - {""}
        if prefix.startswith("/home"):
            yield "/".join(prefix.split("/")[:3])  # with sudo, HOME is not that of the tools' owner

    def _may_show(self, prefix: str) -> bool:
        if prefix == "/" or _is_below(prefix + "/", _NEVER_BELOW):
            return False
        for home in self._homes(prefix):
            if home == prefix or home.startswith(prefix + "/"):
                return False
            if prefix.startswith(home + "/") and prefix[len(home) + 1 :] in _NEVER_IN_HOME:
                return False
        return _CREDENTIAL_NAMES.isdisjoint(self._files.names(prefix))
