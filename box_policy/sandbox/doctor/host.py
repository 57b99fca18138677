"""What kind of machine this is, as far as remedies differ."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

type Family = Literal["debian", "fedora", "alpine"]

_FAMILIES: Mapping[str, Family] = {
    "debian": "debian",
    "ubuntu": "debian",
    "fedora": "fedora",
    "rhel": "fedora",
    "centos": "fedora",
    "alpine": "alpine",
}

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO, linux/proc_ns.h


@dataclass(frozen=True, slots=True)
class Host:
    """A machine."""

    system: str
    """As uname(2) has it: Linux, Darwin, ..."""
    release: str
    machine: str
    distribution: str
    """Its name for people."""
    family: Family | None
    container: str | None
    """What kind of container this is in."""
    wsl: bool
    is_root: bool
    """Whether the caller is root here, which in a container may be nobody outside."""


def read_host(environment: Mapping[str, str]) -> Host:
    """This machine. Whatever can't be read is taken for absent."""
    system = os.uname()
    described = _os_release()
    wsl = "microsoft" in system.release.lower()
    return Host(
        system=system.sysname,
        release=system.release,
        machine=system.machine,
        distribution=described.get("PRETTY_NAME", "an unknown distribution"),
        family=_family(described),
        container=_container(environment),
        wsl=wsl,
        is_root=os.geteuid() == 0,
    )


def _os_release() -> Mapping[str, str]:
    try:
        return platform.freedesktop_os_release()
    except (OSError, ValueError):
        return {}


def _family(described: Mapping[str, str]) -> Family | None:
    for name in (described.get("ID", ""), *described.get("ID_LIKE", "").split()):
        if name in _FAMILIES:
            return _FAMILIES[name]
    return None


def _container(environment: Mapping[str, str]) -> str | None:
    if _is_initial_pid_namespace():
        return None  # a machine made from a container's image has its files, too
    if "KUBERNETES_SERVICE_HOST" in environment:
        return "Kubernetes"
    if Path("/.dockerenv").exists():
        return "Docker"
    if Path("/run/.containerenv").exists():
        return "Podman"
    # systemd-nspawn, LXC and others, see https://systemd.io/CONTAINER_INTERFACE/
    return environment.get("container") or read("/run/systemd/container") or None


def _is_initial_pid_namespace() -> bool:
    try:
        return os.stat("/proc/self/ns/pid").st_ino == _INITIAL_PID_NAMESPACE  # noqa: PTH116
    except OSError:
        return False


def read(path: str) -> str | None:
    """A file of /proc, /sys or /etc without the white space around it; None if it can't be read."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def number(path: str) -> int | None:
    """The number in a file of /proc or /sys; None if there is none."""
    try:
        return int(read(path) or "")
    except ValueError:
        return None


def module_is_installed(host: Host, module: str) -> bool | None:
    """Whether the running kernel's files have a module, built in or not; None if they are not here."""
    directory = f"/lib/modules/{host.release}"
    lists = [read(f"{directory}/{name}") for name in ("modules.builtin", "modules.dep")]
    if all(text is None for text in lists):
        return None
    return any(f"/{module}.ko" in (text or "") for text in lists)
