"""The same attacks against any product's box: ``python -m tests.adversary --box-command '...'``."""

import argparse
import asyncio
import contextlib
import importlib
import json
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import yaml
from rich.console import Console
from rich.table import Table

from tests.adversary.attack import Attack, Outcome, Report, judge
from tests.adversary.attacker import AGENT, Attacker, AttackerGone, over_pipes
from tests.lab import Lab, LabUnavailable, enter, plan

OWN: Final = (
    f"{shlex.quote(sys.executable)} -m box_policy run --quiet"
    " --policy {policy} --name-server {name_server} --"
)

HELP: Final = f"""\
Each attack runs in a box that the command starts, on a test network without a route out. What it came to
is told by what left the product's host, not by the program in the box:

  contained     nothing got out, and the program was told; what is allowed went through
  leaked        something reached a place that the policy forbids
  over-blocked  what the policy allows did not get through
  silent        nothing got out, but the program was left waiting

The command runs a program in a box. The program, a Python interpreter with pipes, is added at its end, or
put, quoted, in the place of {{program}}. {{policy}} stands for a file with the policy (docs/policies.md has
its language; an adapter translates it for a product with another), {{name_server}} for the name server.

The command lives in a network namespace whose one way out leads to the test network's origins. A product
with a daemon has it started there, by --before. Its own addresses are {plan.GATE4} and {plan.GATE6}.

The attacks are hostile programs: never let the command run them outside a box, as root least of all.

Without --box-command it is box-policy's own box: {OWN}
"""

_COLOURS: Final = {
    Outcome.CONTAINED: "green",
    Outcome.LEAKED: "bold red",
    Outcome.OVER_BLOCKED: "yellow",
    Outcome.SILENT: "magenta",
}
_START: Final = 60.0
_LONGEST: Final = 60.0
"""Seconds for one attack."""
_GRACE: Final = 0.15
"""Seconds for a product to send what it is still going to send once the program in the box has its answer."""


class Boxes:
    """A box of the product's for each policy, started when it is first needed."""

    def __init__(self, command: str, python: str, directory: Path) -> None:
        self._command = command
        self._python = python
        self._directory = directory
        self._running: dict[str, tuple[asyncio.subprocess.Process, Attacker]] = {}

    async def attacker(self, policy: object) -> Attacker:
        """The attacker in the box with a policy. AttackerGone if the box doesn't start."""
        key = json.dumps(policy, sort_keys=True)
        if key not in self._running:
            file = self._directory / f"policy-{len(self._running)}.yaml"
            file.write_text(yaml.safe_dump(policy))
            self._running[key] = await self._start(self._argv(file))
        return self._running[key][1]

    async def discard(self, policy: object) -> None:
        """End the box with a policy: the next attack gets a new one."""
        running = self._running.pop(json.dumps(policy, sort_keys=True), None)
        if running is not None:
            await self._end(*running)

    async def close(self) -> None:
        for running in self._running.values():
            await self._end(*running)

    def _argv(self, policy: Path) -> list[str]:
        program = [self._python, "-I", "-u", "-c", AGENT]
        values = {"policy": str(policy), "name_server": plan.NAMESERVER4}
        if "{program}" in self._command:
            return shlex.split(self._command.format(program=shlex.quote(shlex.join(program)), **values))
        return shlex.split(self._command.format(**values)) + program

    async def _start(self, argv: Sequence[str]) -> tuple[asyncio.subprocess.Process, Attacker]:
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
        except OSError as error:
            raise AttackerGone(f"{argv[0]}: {error.strerror}") from None
        attacker = await over_pipes(process)
        try:
            async with asyncio.timeout(_START):
                await attacker.python("result = 1")
        except (TimeoutError, AttackerGone):
            await self._end(process, attacker)
            raise AttackerGone("the box command runs no Python, or not with pipes; see above") from None
        return process, attacker

    async def _end(self, process: asyncio.subprocess.Process, attacker: Attacker) -> None:
        await attacker.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def carry_out(lab: Lab, boxes: Boxes, attack: Attack) -> Report:
    """Carry one attack out and judge it."""
    box = await boxes.attacker(attack.policy)
    lab.reset()
    box.new_nonce()
    for name, answers in attack.zone.items():
        lab.dns.set(name, **answers)
    seen = None
    try:
        async with asyncio.timeout(_LONGEST):
            seen = await attack.act(box)
            if not attack.must_arrive:
                await box.do("release")
    except (TimeoutError, AttackerGone):
        await boxes.discard(attack.policy)
    await asyncio.sleep(_GRACE)
    report = await judge(lab, attack, seen, box.nonce)
    if attack.must_arrive:
        await box.do("release")
    return report


def groups() -> dict[str, Sequence[Attack]]:
    """The portable attacks, by the title of their group."""
    modules = [
        importlib.import_module(f"tests.adversary.{path.stem}")
        for path in sorted(Path(__file__).parent.glob("test_*.py"))
    ]
    return {module.GROUP: module.ATTACKS for module in modules if hasattr(module, "GROUP")}


async def attack_all(lab: Lab, command: str, python: str, chosen: dict[str, list[Attack]]) -> list[Report]:
    """Carry the attacks out one after the other, printing each."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    reports = []
    with tempfile.TemporaryDirectory(prefix="box-policy-adversary-") as directory:
        Path(directory).chmod(0o755)
        boxes = Boxes(command, python, Path(directory))
        try:
            for group, attacks in chosen.items():
                console.print(f"\n{group}", style="bold")
                for attack in attacks:
                    report = await carry_out(lab, boxes, attack)
                    reports.append(report)
                    said = "; ".join(report.evidence) or (f"seen: {report.seen}" if report.seen else "")
                    console.print(f"  {report.outcome:<13}", style=_COLOURS[report.outcome], end="")
                    console.print(f"{attack.name}  ({said})" if said else attack.name)
        finally:
            await boxes.close()
    return reports


def summary(chosen: dict[str, list[Attack]], reports: Sequence[Report]) -> Table:
    """How many attacks of each group came to what."""
    outcomes = {report.attack: report.outcome for report in reports}
    table = Table("group", *(Outcome), box=None)
    for group, attacks in [*chosen.items(), ("all", [a for some in chosen.values() for a in some])]:
        counts = Counter(outcomes[attack] for attack in attacks)
        table.add_row(group, *(str(counts[outcome]) for outcome in Outcome))
    return table


@contextlib.contextmanager
def running(command: str | None) -> Iterator[None]:
    """What has to run beside the boxes."""
    if command is None:
        yield
        return
    process = subprocess.Popen(["/bin/sh", "-c", f"exec {command}"], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.adversary", epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--box-command", default=OWN, metavar="COMMAND", help="what runs a program in a box")
    parser.add_argument("--before", metavar="COMMAND", help="a service to run beside it, to the end")
    parser.add_argument("--python", default="python3", help="an interpreter in the box (3.8 or later)")
    parser.add_argument("--group", action="append", metavar="TITLE", help="this group only; repeatable")
    parser.add_argument("--only", default="", metavar="TEXT", help="attacks with this in their name")
    parser.add_argument("--list", action="store_true", help="name the attacks, and do nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what each came to, as JSON lines")
    asked = parser.parse_args()
    known = groups()
    if unknown := set(asked.group or ()) - known.keys():
        parser.error(f"no such group: {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = {
        group: [attack for attack in attacks if asked.only in attack.name]
        for group, attacks in known.items()
        if not asked.group or group in asked.group
    }
    if asked.list:
        for group, attacks in chosen.items():
            print(group, *(f"  {attack.name}" for attack in attacks), sep="\n")
        return 0
    try:
        enter()
        lab = Lab.start()
    except LabUnavailable as error:
        print(f"no test network on this machine: {error}", file=sys.stderr)
        return 2
    try:
        with running(asked.before):
            reports = asyncio.run(attack_all(lab, asked.box_command, asked.python, chosen))
    except AttackerGone as error:
        print(f"no box: {error}", file=sys.stderr)
        return 2
    finally:
        lab.close()
    Console().print(summary(chosen, reports))
    if asked.json:
        lines = [
            json.dumps(
                {
                    "group": next(group for group, attacks in chosen.items() if report.attack in attacks),
                    "attack": report.attack.name,
                    "outcome": report.outcome,
                    "seen": str(report.seen) if report.seen else None,
                    "evidence": list(report.evidence),
                }
            )
            for report in reports
        ]
        asked.json.write_text("\n".join(lines) + "\n")
    return 1 if any(report.outcome is Outcome.LEAKED for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
