"""The Docker engine that boxes in containers would be made with, and what it is like.

It is asked what it says of itself and which containers it has; nothing is started or changed.
"""

import errno
import getpass
import os
import resource
import shutil
import socket
import stat
import subprocess
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from box_policy.sandbox.doctor import remedies
from box_policy.sandbox.doctor.findings import Finding, Remedy
from box_policy.sandbox.doctor.host import Family, Host, number
from box_policy.sandbox.doctor.trial import Failure, Outcome, Trial, attempt

if TYPE_CHECKING:
    import docker

ENGINE: Final = "Docker engine"
SECCOMP: Final = "Docker's seccomp"
_LIMITS: Final = "Docker's limits"
_CONTAINERS: Final = "Docker's containers"
_COMPOSE: Final = "compose"

_DEFAULT_SOCKET: Final = "/var/run/docker.sock"
_DEFAULT_ADDRESS: Final = f"unix://{_DEFAULT_SOCKET}"
_ADDRESS: Final = "address"
_ANSWER_SECONDS: Final = 3
_SECONDS: Final = 6.0
"""For all answers: one that comes byte by byte is within the time of each."""
_MEMORY: Final = 4 << 30
"""Bytes of address space to take its answers in."""
_COMPOSE_SECONDS: Final = 5.0
_A_VERSION: Final = 256
"""Bytes that none has."""
_SYSTEM_DIRECTORIES: Final = "/usr/local/sbin:/usr/sbin:/sbin"
"""Not on every user's PATH."""
_GROUP: Final = "docker"
_ROOTS_GROUP: Final = "root"
_TALK: Final = ("ping", "version", "info", "containers")
_WHERE: Final = ("DOCKER_HOST", "DOCKER_CONTEXT")
_LIMITS_ASKED: Final = {"MemoryLimit": "memory", "PidsLimit": "processes", "CpuCfsQuota": "processors"}


def check_docker(host: Host, environment: Mapping[str, str]) -> list[Finding]:
    """The engine that DOCKER_HOST or Docker's current context names, or the one at Docker's own place."""
    outcome = attempt(lambda trial: _ask(trial, environment), _SECONDS)
    if outcome.failure is not None:
        return [_no_engine(host, outcome, environment)]
    return judge_engine(host, outcome)


def _ask(trial: Trial, environment: Mapping[str, str]) -> None:
    trial.step("import of docker")
    import docker

    trial.step(_ADDRESS)
    address, options = _engine_address(environment)
    trial.tell(_ADDRESS, address.rpartition("@")[2])
    place = _place(address)
    if place.scheme == "http+unix":
        trial.tell("path", place.path)
        trial.step("socket")
        if not stat.S_ISSOCK(os.stat(place.path).st_mode):  # noqa: PTH116
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        trial.step("connect")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_ANSWER_SECONDS)
            sock.connect(place.path)
    # What it says is not to fill the memory.
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY if most == resource.RLIM_INFINITY else most, most))
    trial.step("ping")
    try:
        client = docker.APIClient(base_url=address, version="auto", timeout=_ANSWER_SECONDS, **options)
        _describe(trial, client)
    except docker.errors.DockerException as error:
        raise _cause(error) from None


def _describe(trial: Trial, client: "docker.APIClient") -> None:
    trial.step("version")
    version = client.version()
    trial.tell("version", str(version.get("Version")))
    trial.tell("api", str(version.get("ApiVersion")))
    trial.tell("components", [str(part.get("Name")) for part in version.get("Components") or ()][:8])
    trial.step("info")
    info = client.info()
    for name in ("OSType", "OperatingSystem", "KernelVersion", "Driver", "CgroupDriver", "CgroupVersion"):
        trial.tell(name, str(info.get(name)))
    trial.tell("Images", int(info.get("Images") or 0))
    trial.tell("SecurityOptions", [str(option) for option in info.get("SecurityOptions") or ()][:16])
    for name in _LIMITS_ASKED:
        trial.tell(name, bool(info.get(name)))
    trial.step("containers")
    from box_policy.sandbox.docker import identity

    states = [
        str(container.get("State"))
        for container in client.containers(all=True, filters={"label": identity.BOX})
    ]
    trial.tell("running", sum(state in ("running", "paused") for state in states))
    trial.tell("ended", sum(state not in ("running", "paused") for state in states))


def _place(address: str) -> SplitResult:
    """Where that is. ValueError if it is not on this machine, and so not to be connected to."""
    from docker.errors import DockerException
    from docker.utils import parse_host

    try:
        place = urlsplit(str(parse_host(address)))
        if place.scheme != "http+unix" and not ip_address(place.hostname or "").is_loopback:
            raise ValueError
    except (DockerException, ValueError):
        raise ValueError("no address of an engine on this machine") from None
    return place


def _cause(error: BaseException) -> BaseException:
    """What the client's layers wrap up: the system's own words, if it had any."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, TimeoutError):
            return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        if isinstance(inner, OSError) and inner.errno:
            return inner
        inner = inner.__cause__ or inner.__context__
    return error


def _engine_address(environment: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """As docker.from_env() finds it, and what else it takes to connect there."""
    from docker.context import ContextAPI
    from docker.utils import kwargs_from_env

    options: dict[str, Any] = {**kwargs_from_env(environment)}
    if "base_url" not in options:
        options = {**ContextAPI.kwargs_from_context(environment=environment), **options}
    return options.pop("base_url", None) or _DEFAULT_ADDRESS, options


def _no_engine(host: Host, outcome: Outcome, environment: Mapping[str, str]) -> Finding:
    """Why there is none, and how to have one."""
    failure = outcome.failure or Failure("engine", "none")
    address, path = outcome.facts.get(_ADDRESS, "Docker's address"), outcome.facts.get("path")
    if failure.step in _TALK:
        found = f"{address} does not answer as an engine does ({failure})"
        return Finding(ENGINE, "missing", found, (_start_anew(host),))
    if path is None:
        if failure.step != _ADDRESS:
            return Finding(ENGINE, "missing", str(failure))
        remedy = Remedy(
            "Boxes are made by an engine on this machine. Name its socket, or nothing, in DOCKER_HOST (docker"
            " context show tells what is used without it):",
            (f"export DOCKER_HOST={_DEFAULT_ADDRESS}",),
        )
        return Finding(ENGINE, "missing", f"{address}: {failure.reason}", (remedy,))
    found = f"{path}: {failure.reason}"
    if failure.number in (errno.EACCES, errno.EPERM):
        return Finding(ENGINE, "missing", found, _permission(host, path))
    if failure.number in (errno.ENOENT, errno.ENOTDIR, errno.ENOTSOCK, errno.ECONNREFUSED):
        return Finding(ENGINE, "missing", found, _start(host, path, environment))
    return Finding(ENGINE, "missing", found)


def _start_anew(host: Host) -> Remedy:
    commands = (
        ("service docker status", "service docker restart")
        if host.family == "alpine"
        else ("journalctl -u docker -e", "systemctl restart docker")
    )
    return Remedy(
        "See what is wrong with the engine, and start it anew:",
        tuple(remedies.as_root(host, command) for command in commands),
    )


def _permission(host: Host, path: str) -> tuple[Remedy, ...]:
    group, text = _group(path) or _GROUP, "Become a member of the group that may use it."
    if group == _ROOTS_GROUP:  # which is not for anybody to become a member of
        group = _GROUP
        text = f"Have the engine give its socket to the group {_GROUP} (dockerd --group); become a member."
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "USER"
    return (
        Remedy(
            f"{text} That is as much as being root on this machine; to use a rootless engine isn't.",
            remedies.join_group(host, group, user),
        ),
    )


def _group(path: str) -> str | None:
    """The name of a file's group; None if it has none, or none that can be told from here."""
    import grp

    try:
        owner = os.stat(path).st_gid  # noqa: PTH116
        return None if owner == number("/proc/sys/kernel/overflowgid") else grp.getgrgid(owner).gr_name
    except (OSError, KeyError):
        return None


def _start(host: Host, path: str, environment: Mapping[str, str]) -> tuple[Remedy, ...]:
    if host.container:
        return (
            Remedy(
                "To make boxes from in here, mount the socket of the machine's engine into this container"
                " (whoever has it is root there):",
                (f"docker run --volume {path}:{_DEFAULT_SOCKET} ...",),
            ),
        )
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    others = [f"{runtime}/docker.sock", _DEFAULT_SOCKET] if runtime.startswith("/") else [_DEFAULT_SOCKET]
    for other in others:
        if other != path and Path(other).is_socket():
            return (Remedy("There is a socket elsewhere:", (f"export DOCKER_HOST=unix://{other}",)),)
    start = remedies.start_docker(host)
    if shutil.which("dockerd", path=f"{environment.get('PATH', '')}:{_SYSTEM_DIRECTORIES}"):
        return (Remedy("Start the engine:", start),)
    packages: Mapping[Family, str] = {"debian": "docker.io", "fedora": "moby-engine", "alpine": "docker"}
    commands = (*remedies.install(host, packages), *start)
    return (Remedy("Install and start an engine, if boxes are to be containers:", commands),)


def judge_engine(host: Host, outcome: Outcome) -> list[Finding]:
    """What an engine that answers says of itself."""
    facts = outcome.facts
    return [_engine(host, facts), _seccomp(facts), _limits(host, facts), _containers(facts)]


def _engine(host: Host, facts: Mapping[str, Any]) -> Finding:
    kind = "Podman" if any("Podman" in name for name in facts["components"]) else "Docker"
    options = [_option(option) for option in facts["SecurityOptions"]]
    users = [
        words
        for name, words in (
            ("rootless", "rootless"),
            ("userns", "ids of containers are shifted (userns-remap)"),
        )
        if name in options
    ]
    found = ", ".join(
        [
            f"{kind} {facts['version']} (API {facts['api']}) at {facts[_ADDRESS]}",
            *users,
            f"storage {facts['Driver']}",
            f"cgroups by {facts['CgroupDriver']}, version {facts['CgroupVersion']}",
        ]
    )
    if facts["OSType"] != "linux":
        remedy = Remedy("Switch the engine to Linux containers.")
        return Finding(ENGINE, "missing", f"{found}; its containers are of {facts['OSType']}", (remedy,))
    if facts["KernelVersion"] != host.release:
        remedy = Remedy(
            "The listeners of a box are handed over between processes of one kernel. Use an engine that runs"
            " on this very kernel, or run box-policy where the engine is."
        )
        return Finding(
            ENGINE,
            "missing",
            f"{found}; it runs on another kernel ({facts['OperatingSystem']}, {facts['KernelVersion']})",
            (remedy,),
        )
    if kind == "Podman":
        remedy = Remedy("Only Docker's own engine is tested with.")
        return Finding(ENGINE, "limited", found, (remedy,))
    return Finding(ENGINE, "ok", found)


def _option(option: str) -> str:
    """The name of what docker info lists as ``name=seccomp,profile=default``."""
    return option.partition(",")[0].removeprefix("name=")


def _seccomp(facts: Mapping[str, Any]) -> Finding:
    if "seccomp" in map(_option, facts["SecurityOptions"]):
        return Finding(SECCOMP, "ok", "filters can be given to containers")
    remedy = Remedy(
        "Without a filter a container reaches the hypervisor (AF_VSOCK) past every network namespace. Use an"
        " engine and a kernel with seccomp."
    )
    return Finding(SECCOMP, "missing", "the engine has none", (remedy,))


def _limits(host: Host, facts: Mapping[str, Any]) -> Finding:
    held = [words for name, words in _LIMITS_ASKED.items() if facts[name]]
    missing = [words for name, words in _LIMITS_ASKED.items() if not facts[name]]
    if not missing:
        return Finding(_LIMITS, "ok", ", ".join(held))
    found = f"held: {', '.join(held) or 'none'}; not held: {', '.join(missing)}"
    remedy = Remedy(
        "Have the kernel offer the controllers (on a Raspberry Pi, cgroup_enable=memory on its command line),"
        " and for a rootless engine have systemd hand them down: cgroup version 2 and Delegate=."
    )
    return Finding(_LIMITS, "limited", found, (remedy,))


def _containers(facts: Mapping[str, Any]) -> Finding:
    found = f"{facts['Images']} images; of box-policy's: {facts['running']} running, {facts['ended']} ended"
    if not facts["ended"]:
        return Finding(_CONTAINERS, "ok", found)
    remedy = Remedy("Remove what ended boxes have left:", ("box-policy gc",))
    return Finding(_CONTAINERS, "limited", found, (remedy,))


def check_compose(host: Host, environment: Mapping[str, str]) -> Finding:
    """The docker command's compose, of version 2."""
    # Its version has nothing to do with an engine, and a nonsensical DOCKER_HOST with its version.
    own = {name: value for name, value in environment.items() if name not in _WHERE}
    outcome = attempt(lambda trial: _ask_compose(trial, own), _COMPOSE_SECONDS)
    version = outcome.facts.get("version")
    if version:
        return Finding(_COMPOSE, "ok", f"docker compose {version}")
    packages: Mapping[Family, str] = {
        "debian": "docker-compose-v2" if "Ubuntu" in host.distribution else "docker-compose",
        "fedora": "docker-compose",
        "alpine": "docker-cli-compose",
    }
    remedy = Remedy(
        "It is for the example in configs/compose.yaml. From Docker's own packages: docker-compose-plugin."
        " Else:",
        remedies.install(host, packages),
    )
    return Finding(
        _COMPOSE, "missing", f"no docker compose ({outcome.failure or 'it has no version'})", (remedy,)
    )


def _ask_compose(trial: Trial, environment: Mapping[str, str]) -> None:
    trial.step("docker")
    with subprocess.Popen(
        ["docker", "compose", "version", "--short"],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        said = process.stdout.read(_A_VERSION) if process.stdout else b""
        if len(said) == _A_VERSION:
            process.kill()  # far too much
    trial.step("docker compose")
    if process.returncode != 0:
        raise ChildProcessError(f"it ended with status {process.returncode}")
    trial.tell("version", said.decode(errors="replace").strip())
