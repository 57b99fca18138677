"""The host's directories that a box's container has, as the engine's API describes mounts."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from box_policy.sandbox.docker import paths
from box_policy.sandbox.launcher import BoxSpec, SandboxError
from box_policy.sandbox.namespaces.filesystem import WORKSPACE, check_read_only

# Who may connect to one of these is the host's root.
_ENGINE_SOCKETS = ("/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock")


def runtime_volume(name: str, *, is_filled: bool = False) -> dict[str, Any]:
    """The volume of a runtime. Where it is to be filled, the engine copies the image's directory into it."""
    return {
        "Type": "volume",
        "Source": name,
        "Target": paths.RUNTIME,
        "ReadOnly": not is_filled,
        "VolumeOptions": {"NoCopy": not is_filled},
    }


def socket_directory(path: Path) -> dict[str, Any]:
    """The directory of the socket that leads to the launcher."""
    return _bind(str(path), paths.SOCKET_DIRECTORY, read_only=True)


def of_box(spec: BoxSpec, engine_socket: str | None) -> list[dict[str, Any]]:
    """``workdir`` and ``read_only``. SandboxError for one that would hide what is the box's own, or in
    which an engine could be reached."""
    found = []
    for path in sorted({str(path.absolute()) for path in spec.read_only}):
        for name in {path, os.path.realpath(path)}:
            check_read_only(name, has_own_system=True)
        found.append(_bind(path, path, read_only=True))
    if spec.workdir is not None:
        found.append(_bind(str(spec.workdir.absolute()), WORKSPACE, read_only=False))
    for mount in found:
        _check_sockets(mount["Source"], [*_ENGINE_SOCKETS, *([engine_socket] if engine_socket else [])])
    return found


def _check_sockets(source: str, sockets: Sequence[str]) -> None:
    real = os.path.realpath(source)
    for path in map(os.path.realpath, sockets):
        if os.path.commonpath((real, path)) == real and os.path.exists(path):  # noqa: PTH110
            raise SandboxError(f"{source} can't be shown in a box: {path} in it leads to the engine")


def _bind(source: str, target: str, *, read_only: bool) -> dict[str, Any]:
    # What is mounted below would not be read-only: it stays out.
    options = {"NonRecursive": read_only}
    return {
        "Type": "bind",
        "Source": source,
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": options,
    }
