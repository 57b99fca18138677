"""What programs a box has: the host's, or those of a given root directory."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from box_policy.policy.quoting import quoted
from box_policy.sandbox.namespaces.toolchains import SYSTEM_PATH
from box_policy.service.errors import service_error

PROGRAMS: Final = {
    "node": ("node",),
    "python": ("python3", "python"),
    "golang": ("go",),
    "ruby": ("ruby",),
    "rust": ("cargo", "rustc"),
}
"""The programs, any of which makes a runtime."""
_ALPINE: Final = "-alpine"
RUNTIMES: Final = frozenset((*PROGRAMS, *(name + _ALPINE for name in PROGRAMS)))


class InvalidRootError(ValueError):
    """A root directory for boxes that can't be used. The message says why."""


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Where the programs of a box come from."""

    root: Path | None = None
    """None: the host's own, unless there is an image."""
    path: str | None = None
    """The box's PATH; None: that of its image."""
    read_only: tuple[Path, ...] = ()
    """Further directories of the host's, for the programs in them."""
    image: str | None = None
    """A container image, for a backend that makes boxes of them."""


class ProgramSource(Protocol):
    """Which programs a box gets."""

    def programs(self, runtime: str | None, image: str | None) -> Programs:
        """Those of a box that asks for a runtime, for an image, or for neither.

        Raises:
            ApiError: they can't be had here.
        """


@dataclass(frozen=True)
class Runtimes:
    """Which programs a box gets that asks for a runtime, or for none."""

    path: str = ":".join(SYSTEM_PATH)
    """The PATH of boxes with the host's programs."""
    read_only: tuple[Path, ...] = ()
    """Directories of the host's with tools, shown to boxes with the host's programs."""
    roots: Mapping[str, Path] = field(default_factory=dict)
    """Root directories by runtime; that of ``""`` for whatever has none of its own."""

    def programs(self, runtime: str | None, image: str | None) -> Programs:
        """Where the programs come from.

        Raises:
            ApiError: there is no such runtime here, or an image is asked for.
        """
        if image is not None:
            raise service_error(
                "image_refused",
                f"image {quoted(image)}: boxes of this service have the programs of its machine; "
                "images take one with --backend docker",
            )
        root = self.roots.get(runtime or "", self.roots.get(""))
        if root is None:
            programs = Programs(path=self.path, read_only=self.read_only)
        else:
            programs = Programs(root=root, path=":".join(SYSTEM_PATH))
        if runtime is not None:
            _check(runtime, programs)
        return programs


def parse_roots(settings: Iterable[str]) -> dict[str, Path]:
    """Root directories as they are written: ``DIRECTORY`` for all boxes, or ``RUNTIME=DIRECTORY``.

    Raises:
        InvalidRootError: one of them is none.
    """
    roots = {}
    for setting in settings:
        runtime, equals, directory = setting.partition("=")
        if not equals or runtime not in RUNTIMES:
            runtime, directory = "", setting
        root = Path(directory)
        if not root.is_dir():
            raise InvalidRootError(f"{directory!r} is no directory: name one with a root file system in it")
        roots[runtime] = root.resolve()
    return roots


def _check(runtime: str, programs: Programs) -> None:
    where = "this machine" if programs.root is None else str(programs.root)
    name = runtime.removesuffix(_ALPINE)
    if name not in PROGRAMS:
        known = ", ".join(PROGRAMS)
        raise service_error("runtime_missing", f"there is no runtime {runtime!r}: there are {known}")
    if runtime.endswith(_ALPINE) and not ((programs.root or Path("/")) / "etc/alpine-release").is_file():
        raise service_error(
            "runtime_missing",
            f"runtime {runtime!r}: {where} isn't Alpine Linux; serve with --rootfs {runtime}=DIRECTORY, "
            f"or ask for {name!r}",
        )
    if not any(_has(program, programs) for program in PROGRAMS[name]):
        wanted = " or ".join(PROGRAMS[name])
        raise service_error(
            "runtime_missing",
            f"runtime {runtime!r}: {where} has no {wanted}; install it, or serve with "
            f"--rootfs {runtime}=DIRECTORY",
        )


def _has(program: str, programs: Programs) -> bool:
    if programs.root is None:
        return shutil.which(program, path=programs.path) is not None
    # A link may be absolute, and then leads on inside the root: that it is there is enough.
    return any(
        (programs.root / directory.lstrip("/") / program).exists(follow_symlinks=False)
        for directory in (programs.path or "").split(":")
    )
