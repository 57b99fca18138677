"""A box's container, and the one that makes its network, as the engine's API describes containers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from box_policy.sandbox.docker import identity, mounts, runtime
from box_policy.sandbox.launcher import BoxSpec, Limit
from box_policy.sandbox.namespaces import limits, network
from box_policy.sandbox.namespaces.box_init import SPARE_PROCESSES

# As namespaces.workload.CAPABILITIES, by name.
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID")
_CPU_PERIOD = 100_000
"""Microseconds. The kernel's own default."""
_LEAST_QUOTA = 1000
"""The least that the kernel takes."""
_SYSCTLS = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    # See namespaces.network.write_settings.
    "net.ipv4.tcp_timestamps": "2",
    # Nobody's, where Docker has everybody's: as in a box of namespaces.
    "net.ipv4.ping_group_range": "1 0",
}
# Docker switches IPv6 off in a network namespace without a network.
_SYSCTLS_6 = {f"net.ipv6.conf.{name}.disable_ipv6": "0" for name in ("all", "default", "lo")}


@dataclass(frozen=True, slots=True)
class Image:
    """What of an image matters here."""

    name: str
    """As it was named, for people."""
    id: str
    config: Mapping[str, Any]
    """Its own settings (User, Env, ...), as the engine tells them."""

    @property
    def environment(self) -> dict[str, str]:
        """Its variables."""
        entries = (entry.partition("=") for entry in self.config.get("Env") or ())
        return {name: value for name, _, value in entries if name}

    @property
    def user(self) -> str:
        """Its user; empty for root."""
        return str(self.config.get("User") or "")


def box_container(
    spec: BoxSpec, image: Image, volume: str, socket: Path, seccomp: str, engine_socket: str | None
) -> dict[str, Any]:
    """The container of a box, for POST /containers/create. ``socket`` is the directory of its socket.

    SandboxError if it can't have a directory of the host's that it is to have.
    """
    given = mounts.of_box(spec, engine_socket)
    own = [mounts.runtime_volume(volume), mounts.socket_directory(socket)]
    bounds = spec.limits
    host_config = {
        **_confinement([*own, *given], network="none", capabilities=CAPABILITIES),
        "SecurityOpt": ["no-new-privileges", f"seccomp={seccomp}"],
        "Sysctls": _SYSCTLS | (_SYSCTLS_6 if Path("/proc/sys/net/ipv6").is_dir() else {}),
        "Dns": [network.NAMESERVER],
        "DnsOptions": [],
        "DnsSearch": ["."],
        "ExtraHosts": [f"{spec.hostname}:{network.ADDRESS_4}"],
        "AutoRemove": True,
        # One, and not none: see namespaces.workload.limit_cores.
        "Ulimits": [{"Name": "core", "Soft": 1, "Hard": 1}],
    }
    if bounds.memory_bytes is not None:
        host_config["Memory"] = host_config["MemorySwap"] = bounds.memory_bytes
    if bounds.pids is not None:
        host_config["PidsLimit"] = bounds.pids + SPARE_PROCESSES
    if bounds.cpus is not None:
        # Not NanoCpus, which an engine refuses beyond what its machine has.
        host_config["CpuPeriod"] = _CPU_PERIOD
        host_config["CpuQuota"] = max(_LEAST_QUOTA, int(bounds.cpus * _CPU_PERIOD))
    return {
        **_process("container_init", image.id),
        # Without a value: removed. Nothing of the image's (LD_PRELOAD, ...) is there when pid 1 starts.
        "Env": sorted(image.environment),
        "Hostname": spec.hostname,
        "Labels": {identity.BOX: spec.id, identity.LAUNCHER: identity.own()},
        "HostConfig": host_config,
    }


def network_container(container: str, runtime_image: str, volume: str, socket: Path) -> dict[str, Any]:
    """The container that makes the network of another one."""
    mounted = [mounts.runtime_volume(volume), mounts.socket_directory(socket)]
    return {
        **_process("network_helper", runtime_image),
        "Labels": {identity.LAUNCHER: identity.own()},
        "HostConfig": {
            **_confinement(mounted, network=f"container:{container}", capabilities=("NET_ADMIN",)),
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "AutoRemove": True,
        },
    }


def runtime_container(version: str, runtime_image: str, volume: str) -> dict[str, Any]:
    """The container, never started, with whose making the engine fills the volume from the image."""
    return {
        "Image": runtime_image,
        "Cmd": ["none"],
        "Labels": {identity.RUNTIME: version},
        "HostConfig": {
            "NetworkMode": "none",
            "Mounts": [mounts.runtime_volume(volume, is_filled=True)],
        },
    }


def describe_limits(spec: BoxSpec, info: Mapping[str, Any]) -> dict[Limit, str]:
    """By which means each bound is held, in words; ``info`` is what the engine says of itself."""
    bounds = spec.limits
    version = f"Docker (cgroup v{info.get('CgroupVersion') or 1})"
    words: dict[Limit, str] = {}
    if bounds.memory_bytes is not None and info.get("MemoryLimit"):
        words["memory"] = f"{limits.in_units(bounds.memory_bytes)}, {version}"
    if bounds.pids is not None and info.get("PidsLimit"):
        words["pids"] = f"{bounds.pids + SPARE_PROCESSES} with those that serve it, {version}"
    if bounds.cpus is not None and info.get("CpuCfsQuota"):
        words["cpus"] = f"{bounds.cpus:g}, {version}"
    return words


def _process(module: str, image: str) -> dict[str, Any]:
    return {
        "Image": image,
        "Entrypoint": runtime.command(module),
        "Cmd": [],
        "User": "0:0",
        "WorkingDir": "/",
        # The image's would be run in the container, as its root.
        "Healthcheck": {"Test": ["NONE"]},
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "Tty": False,
        "OpenStdin": False,
    }


def _confinement(mounted: list[dict[str, Any]], network: str, capabilities: Sequence[str]) -> dict[str, Any]:
    return {
        "NetworkMode": network,
        "CapDrop": ["ALL"],
        "CapAdd": list(capabilities),
        "Mounts": mounted,
        "IpcMode": "private",
        "CgroupnsMode": "private",
        # Were it the engine's default, its own pid 1 would be there in place of ours.
        "Init": False,
        "LogConfig": {"Type": "none", "Config": {}},
        "RestartPolicy": {"Name": "no"},
    }
