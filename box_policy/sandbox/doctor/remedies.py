"""What mends what, in the words of the machine that it is for."""

import shlex
from collections.abc import Mapping

from box_policy.sandbox.doctor.findings import Remedy
from box_policy.sandbox.doctor.host import Family, Host

_NAMES: Mapping[Family, str] = {
    "debian": "Debian, Ubuntu",
    "fedora": "Fedora, RHEL",
    "alpine": "Alpine",
}
_INSTALL: Mapping[Family, str] = {
    "debian": "apt install",
    "fedora": "dnf install",
    "alpine": "apk add",
}


def as_root(host: Host, command: str) -> str:
    """A command, to be run by root."""
    if host.is_root:
        return command
    return f"{'doas' if host.family == 'alpine' else 'sudo'} {command}"


def install(host: Host, packages: Mapping[Family, str]) -> tuple[str, ...]:
    """The command that installs what has these names; where it isn't known which one, all of them."""
    if host.family is not None:
        return (as_root(host, f"{_INSTALL[host.family]} {packages[host.family]}"),)
    return tuple(
        as_root(host, f"{_INSTALL[family]} {name}") + f"  # {_NAMES[family]}"
        for family, name in packages.items()
    )


def sysctl(host: Host, name: str, value: str) -> tuple[str, ...]:
    """The commands that set a kernel setting, now and from the next start on."""
    file = "/etc/sysctl.d/60-box-policy.conf"
    return (
        as_root(host, f"sysctl -w {name}={value}"),
        f"echo '{name} = {value}' | {as_root(host, f'tee -a {file}')}",
    )


def on_the_host(host: Host) -> str:
    """Where kernel settings are made and modules loaded."""
    return " on the machine that the container runs on" if host.container else ""


def let_user_namespaces_be(host: Host, setting: str, value: str) -> Remedy:
    """A switch of the kernel's."""
    return Remedy(f"Allow user namespaces{on_the_host(host)}:", sysctl(host, setting, value))


def load_modules(host: Host, modules: tuple[str, ...], installed: bool | None) -> Remedy:
    """Modules that the kernel has not loaded by itself; whether it has files of them, if that is known."""
    names = " ".join(modules)
    file = "/etc/modules" if host.family == "alpine" else "/etc/modules-load.d/box-policy.conf"
    load = (
        as_root(host, f"modprobe -a {names}"),
        f"printf '%s\\n' {names} | {as_root(host, f'tee -a {file}')}",
    )
    if host.container:
        return Remedy(f"Load the kernel's modules{on_the_host(host)}:", load)
    if installed:
        return Remedy("Load the kernel's modules, now and at each start:", load)
    if host.wsl:
        return Remedy(
            "Get the current kernel of WSL 2 (in Windows' command line):", ("wsl --update", "wsl --shutdown")
        )
    packages: Mapping[Family, str] = {
        "debian": f"linux-modules-extra-{host.release}"
        if "Ubuntu" in host.distribution
        else "linux-image-amd64"
        if host.machine == "x86_64"
        else "linux-image-arm64",
        "fedora": "kernel-modules",
        "alpine": "linux-lts",
    }
    return Remedy(
        f"This kernel ({host.release}) has no module {names}, or was replaced since the machine was started."
        " Install one that has it, and restart:",
        install(host, packages),
    )


def apparmor_profile(host: Host, executable: str) -> Remedy:
    """Ubuntu's restriction lifted for one program. See https://gitlab.com/apparmor/apparmor/-/wikis."""
    file = "/etc/apparmor.d/box-policy"
    return Remedy(
        "Give this Python an AppArmor profile that allows user namespaces, rather than switching the"
        " restriction off for every program. It is for all that this interpreter runs: to keep it to"
        " box-policy, install that in a virtual environment with an interpreter of its own (python3 -m venv"
        " --copies).",
        (
            f"{as_root(host, f'tee {file}')} <<'END'",
            "abi <abi/4.0>,",
            "include <tunables/global>",
            f'profile box-policy "{executable}" flags=(unconfined) {{',
            "  userns,",
            "}",
            "END",
            as_root(host, f"apparmor_parser -r {file}"),
        ),
    )


_DOCKER_OPTIONS = ("seccomp=unconfined", "systempaths=unconfined", "apparmor=unconfined")


def container_options(host: Host) -> tuple[Remedy, ...]:
    """What a container must be started with so that boxes can be made in it."""
    docker = Remedy(
        "Start the container with:",
        (" ".join(f"--security-opt {option}" for option in _DOCKER_OPTIONS),),
    )
    instead = Remedy(
        "That takes from the container what holds its own programs. Rather run boxes in containers of their"
        " own (box-policy doctor --backend docker), or the gate beside the program (box-policy gate"
        " --sidecar)."
    )
    kubernetes = Remedy(
        "In the pod hostUsers: false, and in the container's securityContext:",
        (
            "procMount: Unmasked",
            "seccompProfile: {type: Unconfined}",
            "appArmorProfile: {type: Unconfined}",
        ),
    )
    return (kubernetes if host.container == "Kubernetes" else docker, instead)


def whole_proc(host: Host) -> tuple[Remedy, ...]:
    """For a /proc that is covered in parts, or can't be written to."""
    if host.container:
        return container_options(host)
    return (Remedy("Mount /proc writable, and nothing over any part of it (/proc/sys above all)."),)


def start_docker(host: Host) -> tuple[str, ...]:
    """The commands that start an engine, now and from the next start on."""
    if host.family == "alpine":
        return as_root(host, "rc-update add docker"), as_root(host, "service docker start")
    return (as_root(host, "systemctl enable --now docker"),)


def join_group(host: Host, group: str, user: str) -> tuple[str, ...]:
    """The command that makes a user a member of a group; what is logged in already doesn't notice."""
    add = "addgroup" if host.family == "alpine" else "usermod -aG"
    names = (user, group) if host.family == "alpine" else (group, user)
    return (as_root(host, f"{add} {shlex.join(names)}"), f"newgrp {shlex.quote(group)}")
