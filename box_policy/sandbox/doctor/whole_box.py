"""A box as it will be, with a program run in it."""

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from box_policy.sandbox.doctor.findings import Finding, Remedy
from box_policy.sandbox.doctor.host import Host
from box_policy.sandbox.doctor.trial import Failure, Outcome, Trial, attempt
from box_policy.sandbox.launcher import BoxSpec, ProgramSpec

if TYPE_CHECKING:
    from box_policy.sandbox.namespaces.launcher import NamespaceLauncher

_SECONDS: Final = 20.0
_PROGRAM: Final = "/bin/true"
_A_BOX: Final = "a box"
_ID_MAP: Final = "uid_map"
_NO_ROOT: Final = Remedy(
    "Root of this container may not give boxes ids of their own. Start it as a normal user, whose id its"
    " boxes then share, or as root with CAP_SYS_ADMIN:",
    ("--user 1000:1000", "--cap-add SYS_ADMIN"),
)


def check_box(host: Host) -> list[Finding]:
    """A box of namespaces, and one with a directory of the host's."""
    return judge_box(host, attempt(lambda trial: asyncio.run(_boxes(trial)), _SECONDS))


async def _boxes(trial: Trial) -> None:
    # Here, as in every trial: what Linux alone has can't even be imported elsewhere.
    from box_policy.sandbox.namespaces.launcher import NamespaceLauncher

    launcher = NamespaceLauncher()
    try:
        for name in ("first", "second"):
            trial.step(_A_BOX)
            started = time.perf_counter()
            await _run(trial, launcher, BoxSpec(name))
            trial.tell(name, time.perf_counter() - started)
        trial.step("the current directory")
        directory = os.getcwd()  # noqa: PTH109
        trial.tell("directory", directory)
        trial.step(f"a box with {directory}")
        # Nothing in it is touched. File systems differ in whether they let the ids of a box be mapped.
        await _run(trial, launcher, BoxSpec("third", workdir=Path(directory)))
        trial.tell("work directory", True)
    finally:
        await launcher.close()


async def _run(trial: Trial, launcher: "NamespaceLauncher", spec: BoxSpec) -> None:
    box = await launcher.create(spec)
    try:
        trial.step(f"{_PROGRAM} in a box")
        status = await (await box.start(ProgramSpec([_PROGRAM]))).wait()
    finally:
        await box.close()
    if status != 0:
        raise ChildProcessError(f"it ended with status {status}")


def judge_box(host: Host, outcome: Outcome) -> list[Finding]:
    """What the trial of whole boxes says."""
    facts, failure = outcome.facts, outcome.failure
    box, work = "box", "work directory"
    if failure is not None and "second" not in facts:
        # What it takes singly says more, above; but it is this that counts.
        found, remedies = _said(failure)
        if outcome.complaint:
            found, remedies = f"{found} ({outcome.complaint})", ()
        if host.is_root and host.container and _ID_MAP in failure.reason:
            remedies = (_NO_ROOT,)
        return [
            Finding(box, "missing", found, remedies),
            Finding(work, "missing", "can't be tried without a box"),
        ]
    times = [f"{facts[name] * 1000:.0f} ms" for name in ("first", "second")]
    made = Finding(box, "ok", f"made, {_PROGRAM} run, ended: the first in {times[0]}, then {times[1]}")
    if failure is None:
        return [made, Finding(work, "ok", f"{facts['directory']} can be one")]
    found, remedies = _said(failure)
    return [made, Finding(work, "limited", found, remedies)]


def _said(failure: Failure) -> tuple[str, tuple[Remedy, ...]]:
    """What is wrong, and what to do about it: launchers say both, in this order, in one sentence."""
    wrong, _, remedy = failure.reason.partition("; ")
    return f"{failure.step}: {wrong}", (Remedy(f"{remedy[0].upper()}{remedy[1:]}."),) if remedy else ()
