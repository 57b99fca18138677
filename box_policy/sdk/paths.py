"""Paths in a box."""

import posixpath
from typing import Final

WORKSPACE: Final = "/workspace/home"
"""Where programs start, and what relative paths count from."""


def resolved(cwd: str, path: str) -> str:
    """``path`` as an absolute one."""
    return path if path.startswith("/") else f"{cwd}/{path}"


def normalized(path: str) -> str:
    """An absolute path without ``.``, ``..`` and empty steps."""
    return posixpath.normpath(f"/{path.lstrip('/')}")


def folder(cwd: str) -> str:
    """A directory as requests name it: relative to the workspace if it lies there, else absolute."""
    return cwd.removeprefix(WORKSPACE).lstrip("/") if f"{cwd}/".startswith(f"{WORKSPACE}/") else cwd
