"""All checks in their order, and what they come to."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from box_policy.sandbox.doctor import (
    basics,
    bounds,
    docker_engine,
    gates,
    network,
    user_namespaces,
    whole_box,
)
from box_policy.sandbox.doctor.findings import Ability, Examination, Finding, Mode
from box_policy.sandbox.doctor.host import Host, read_host

BACKENDS: Final[Sequence[Mode]] = ("namespaces", "docker")
"""What can run boxes."""
_MODES: Final[Mapping[Mode, str]] = {
    "namespaces": "boxes of namespaces",
    "docker": "boxes in Docker",
    "sidecar": "sidecar",
    "addon": "mitmproxy addon",
}
_DECISIVE: Final[Mapping[Mode, frozenset[str]]] = {
    "namespaces": frozenset({"system", "Python", "mitmproxy", "box"}),
    "docker": frozenset({"system", "Python", "mitmproxy", docker_engine.ENGINE, docker_engine.SECCOMP}),
    "sidecar": frozenset({"system", "Python", "mitmproxy", "network namespace"}),
    "addon": frozenset({"system", "Python", "mitmproxy"}),
}
"""The checks without any of which there is none."""
_CAUSES: Final[Mapping[str, frozenset[str]]] = {
    "box": frozenset({"kernel", "seccomp", "user namespaces", "namespaces", "user ids", "nf_tables"})
}
"""The checks that say why another one fails."""
_EVERY: Final[frozenset[Mode]] = frozenset(_MODES)
_HERE: Final[frozenset[Mode]] = frozenset({"namespaces"})
_GATES: Final[frozenset[Mode]] = frozenset({"sidecar", "addon"})
_DOCKER: Final[frozenset[Mode]] = frozenset({"docker"})


@dataclass(frozen=True, slots=True)
class _Check:
    """What is to be run, by the name to report it under if it can't."""

    name: str
    modes: frozenset[Mode]
    """For which it matters."""
    run: Callable[[Host, Mapping[str, str]], Finding | list[Finding]]
    anywhere: bool = False
    """Whether it can be run on other systems than Linux."""


_CHECKS: Final[Sequence[_Check]] = (
    _Check("system", _EVERY, lambda host, _: basics.check_system(host), anywhere=True),
    _Check("Python", _EVERY, lambda host, _: basics.check_python(host), anywhere=True),
    _Check("mitmproxy", _EVERY, lambda host, _: gates.check_mitmproxy(host), anywhere=True),
    _Check("name servers", _EVERY, lambda host, _: gates.check_name_servers(host)),
    _Check("descriptors", _EVERY, lambda host, _: bounds.check_descriptors(host)),
    _Check("kernel", _EVERY, lambda host, _: basics.check_kernel(host)),
    _Check("seccomp", _HERE, lambda host, _: basics.check_seccomp(host)),
    _Check("user namespaces", _HERE, lambda host, _: user_namespaces.check_user_namespaces(host)),
    _Check("user ids", _HERE, lambda host, _: user_namespaces.check_ids(host)),
    _Check("nf_tables", _HERE, lambda host, _: network.check_network(host)),
    _Check("limits of boxes", _HERE, lambda host, _: bounds.check_limits(host)),
    _Check("box", _HERE, lambda host, _: whole_box.check_box(host)),
    _Check(docker_engine.ENGINE, _DOCKER, docker_engine.check_docker),
    _Check("compose", frozenset({"sidecar"}), docker_engine.check_compose),
    _Check("network namespace", frozenset({"sidecar"}), lambda host, _: gates.check_sidecar(host)),
    _Check("connection tracking", _GATES, lambda host, _: bounds.check_connection_tracking(host)),
)


def examine(environment: Mapping[str, str], backend: Mode | None = None) -> Examination:
    """Examine this machine, or what matters for one backend alone. No check raises, or hangs."""
    wanted: Collection[Mode] = _MODES if backend is None else (backend,)
    host = read_host(environment)
    findings: list[Finding] = []
    for check in _CHECKS:
        if check.modes.isdisjoint(wanted) or not (check.anywhere or host.system == "Linux"):
            continue
        try:
            found = check.run(host, environment)
        except Exception as error:  # a machine odder than foreseen is the very thing to report
            found = Finding(check.name, "missing", f"the check itself failed: {error!r}")
        findings += found if isinstance(found, list) else [found]
    return Examination(findings, [_ability(mode, findings) for mode in _MODES if mode in wanted])


def _ability(mode: Mode, findings: Iterable[Finding]) -> Ability:
    decisive = _DECISIVE[mode]
    missing = {finding.name: finding for finding in findings if finding.state == "missing"}
    if not decisive & missing.keys():
        return Ability(mode, _MODES[mode], True)
    telling = decisive.union(*(_CAUSES.get(name, ()) for name in decisive & missing.keys()))
    # The first in their order: what comes later is often only its consequence.
    first = next(finding for finding in missing.values() if finding.name in telling)
    return Ability(mode, _MODES[mode], False, f"{first.name}: {first.found}")
