"""What boxes can be held to, and what gates have to live with."""

import os
import resource
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from box_policy.sandbox.doctor.findings import Finding, Remedy
from box_policy.sandbox.doctor.host import Host, number, read
from box_policy.sandbox.doctor.remedies import as_root, on_the_host, sysctl
from box_policy.sandbox.doctor.trial import Outcome, Trial, attempt

_SECONDS: Final = 8.0
_ASKED: Final = {"memory": 256 << 20, "pids": 256, "cpus": 1}
_WORDS: Final = {"memory": "memory", "pids": "processes", "cpus": "processors"}
_RETRIES: Final = 100

_FEW_DESCRIPTORS: Final = 4096
_CONNTRACK: Final = "/proc/sys/net/netfilter/nf_conntrack_"
_FEW_CONNECTIONS: Final = 32_768
_NEARLY_FULL: Final = 0.9


def check_limits(host: Host) -> Finding:
    """Control groups: which bounds of a box the kernel would hold for this caller."""
    return judge_limits(host, attempt(_be_held, _SECONDS))


def _be_held(trial: Trial) -> None:
    """Do as the process does that boxes are forked from, and leave the groups as they were found."""
    from box_policy.sandbox.namespaces import cgroups, syscalls

    trial.step("control groups")
    # By this name others know that a group's maker is alive.
    syscalls.set_process_name(cgroups.ZYGOTE)
    places = cgroups.find_places(
        *(Path(f"/proc/self/{name}").read_text(errors="surrogateescape") for name in ("cgroup", "mountinfo"))
    )
    trial.tell("versions", sorted({place.version for place in places}))
    groups = cgroups.Cgroups(places)
    try:
        name = cgroups.group_name(0)
        child = os.fork()
        if child == 0:
            try:
                trial.tell("held", groups.join(name, _ASKED))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        for _ in range(_RETRIES):
            if groups.remove(name):
                break
            time.sleep(0.005)
    finally:
        groups.close()


def judge_limits(host: Host, outcome: Outcome) -> Finding:
    """What the trial of control groups says."""
    name = "limits of boxes"
    held: Mapping[str, int] = outcome.facts.get("held") or {}
    by_group = [f"{_WORDS[limit]} (cgroup v{held[limit]})" for limit in _ASKED if limit in held]
    if len(held) == len(_ASKED):
        return Finding(name, "ok", ", ".join(by_group))
    if "pids" not in held:
        by_group.append(f"{_WORDS['pids']} (rlimit)")  # which takes no group
    others = [_WORDS[limit] for limit in _ASKED if limit not in held and limit != "pids"]
    found = f"held: {', '.join(by_group)}; not held: {', '.join(others) or 'none'}"
    if outcome.failure is not None:
        found += f" ({outcome.failure})"
    return Finding(name, "limited", found, _delegation(host, outcome.facts.get("versions") or ()))


def _delegation(host: Host, versions: Collection[int]) -> tuple[Remedy, ...]:
    if host.container:
        return (
            Remedy(
                "Give the container a writable /sys/fs/cgroup, as engines of version 1 do with"
                " --volume /sys/fs/cgroup:/sys/fs/cgroup, or bound the container itself."
            ),
        )
    if 1 in versions:
        return (
            Remedy(
                "These are of version 1, where only root makes groups: start box-policy as root, or the"
                " kernel with systemd.unified_cgroup_hierarchy=1."
            ),
        )
    if Path("/run/systemd/system").is_dir():
        return (
            Remedy(
                "Have systemd hand a group down; a service has Delegate=yes:",
                (
                    "systemd-run --scope -p Delegate=yes box-policy ..."
                    if host.is_root
                    else "systemd-run --user --scope -p Delegate=yes box-policy ...",
                ),
            ),
            *(() if host.is_root else (_more_controllers(host),)),
        )
    return (
        Remedy(
            "Start box-policy in a group of its own with nothing else in it, writable for it, in whose parent"
            " cgroup.subtree_control has memory, pids and cpu: cgroups(7)."
        ),
    )


def _more_controllers(host: Host) -> Remedy:
    directory = "/etc/systemd/system/user@.service.d"
    return Remedy(
        "systemd hands users memory and pids; cpu as well after this, from the next login on:",
        (
            as_root(host, f"mkdir -p {directory}"),
            "printf '[Service]\\nDelegate=cpu memory pids\\n' | "
            + as_root(host, f"tee {directory}/delegate.conf"),
            as_root(host, "systemctl daemon-reload"),
        ),
    )


def check_descriptors(host: Host) -> Finding:
    """How many connections a gate may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    name, found = "descriptors", f"{hard if hard != resource.RLIM_INFINITY else 'without limit'}"
    if soft != hard:
        found += f" (now {soft}; gates raise it)"
    if hard == resource.RLIM_INFINITY or hard >= _FEW_DESCRIPTORS:
        return Finding(name, "ok", found)
    return Finding(
        name,
        "limited",
        f"{found}: about {hard // 3} connections at a time",
        (
            Remedy(
                "Raise the hard limit: --ulimit nofile=65536 (docker run), LimitNOFILE=65536 (systemd), or"
                " for a login:",
                (
                    "printf '* hard nofile 65536\\n' | "
                    + as_root(host, "tee /etc/security/limits.d/60-box-policy.conf"),
                ),
            ),
        ),
    )


def check_connection_tracking(host: Host) -> Finding:
    """The size of the table that redirects rest on."""
    name = "connection tracking"
    most, used = number(f"{_CONNTRACK}max"), number(f"{_CONNTRACK}count")
    if most is None:
        if read("/proc/sys/kernel/osrelease") is None:
            return Finding(name, "limited", "its size can't be read: there is no /proc/sys")
        return Finding(name, "ok", "not in use yet: the kernel loads it with the first rules")
    found = f"{most} entries" + (f", {used} in use here" if used is not None else "")
    setting = "net.netfilter.nf_conntrack_max"
    if (used or 0) >= most * _NEARLY_FULL:
        remedy = Remedy(
            f"New connections will fail. Raise it{on_the_host(host)}:", sysctl(host, setting, str(4 * most))
        )
        return Finding(name, "limited", f"{found}: nearly full", (remedy,))
    if most < _FEW_CONNECTIONS:
        remedy = Remedy(f"Raise it{on_the_host(host)}:", sysctl(host, setting, "262144"))
        return Finding(name, "limited", f"{found}: few", (remedy,))
    return Finding(name, "ok", found)
