"""Machines for the tests of ``box-policy doctor``: described, or this one made to lack something."""

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from box_policy.sandbox.doctor.findings import Finding, Remedy
from box_policy.sandbox.doctor.host import Host
from box_policy.sandbox.doctor.trial import Trial, attempt

HOST = Host(
    system="Linux",
    release=os.uname().release,
    machine=os.uname().machine,
    distribution="Debian GNU/Linux 13 (trixie)",
    family="debian",
    container=None,
    wsl=False,
    is_root=False,
)


def elsewhere(prepare: Callable[[], None], check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    """What a check finds in a process that has been ``prepare``\\ d, from which there is no way back."""

    def work(trial: Trial) -> None:
        trial.step("preparation")
        prepare()
        trial.step("check")
        found = check()
        trial.tell(
            "findings", [asdict(finding) for finding in (found if isinstance(found, list) else [found])]
        )

    outcome = attempt(work, 20)
    if outcome.failure is not None and outcome.failure.step == "preparation":
        pytest.skip(f"this machine can't be made to fail: {outcome.failure}")
    assert outcome.failure is None
    return [
        Finding(
            **{
                **fields,
                "remedies": tuple(Remedy(r["text"], tuple(r["commands"])) for r in fields["remedies"]),
            }
        )
        for fields in outcome.facts["findings"]
    ]


def own_user_namespace() -> None:
    """Root of a user namespace, under the caller's own ids."""
    uid, gid = os.geteuid(), os.getegid()
    os.unshare(os.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)


def commands(finding: Finding) -> str:
    return "\n".join(line for remedy in finding.remedies for line in remedy.commands)
