"""Files on this side: read for an upload, written by a download."""

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from box_policy.sdk.errors import BoxError


@contextlib.contextmanager
def opened(paths: Iterable[str | os.PathLike[str]]) -> Iterator[list[IO[bytes]]]:
    """The files, open for reading."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(open(path, "rb")) for path in paths]


@contextlib.contextmanager
def replaced(directory: Path, name: str) -> Iterator[IO[bytes]]:
    """A file of that name in ``directory``, to be written: there only once it is whole.

    The name comes from a box: of a path its last step counts. What was there of that name is replaced, and
    never written through, if it is a symbolic link.

    Raises:
        BoxError: the name is none for a file.
    """
    last = os.path.basename(name)  # noqa: PTH119 - Path would drop what is refused here
    if last in ("", ".", "..") or "\0" in last:
        raise BoxError(f"unsafe download filename: {name!r}")
    unfinished = directory / f".box-policy-{secrets.token_hex(8)}"
    try:
        with open(unfinished, "xb") as file:
            yield file
        unfinished.replace(directory / last)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def download_directory(path: str) -> Path:
    """Where files of the box's directory ``path`` are written: one of its name, where this process is."""
    directory = Path(os.path.basename(path) or "root")  # noqa: PTH119
    directory.mkdir(parents=True, exist_ok=True)
    return directory
